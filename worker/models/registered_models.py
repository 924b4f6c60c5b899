"""The models of the registry on a device: the champion at the start, and whatever comes later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.models.bundle_cache import prune
from worker.models.loading import settings_for_model
from worker.models.registry import ModelsRegistry
from worker.models.reloader import ModelReloader, first_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from worker.models.registry import ModelVersion
    from worker.scoring.device_thread import InferenceThread
    from worker.scoring.interface import Scorer
    from worker.settings import Scoring, Settings
    from worker.telemetry.metrics import Metrics


class RegisteredModels:
    """Loads the models that the registry points to; `load_scorer` builds one from its settings."""

    def __init__(
        self, engine: Engine, settings: Settings, load_scorer: Callable[[Scoring], Scorer]
    ) -> None:
        self._registry = ModelsRegistry(engine)
        self._settings = settings
        self._load_scorer = load_scorer

    def first(self) -> Scorer:
        """Load the champion, or the settings' own bundle before the first promotion."""
        scoring = self._settings.scoring
        return first_model(self._registry, self._load, lambda: self._load_scorer(scoring))

    def follow(
        self, device: InferenceThread[Any, Any], *, metrics: Metrics, with_shadow: bool
    ) -> ModelReloader:
        """Have a started device follow the registry; the caller stops what is returned."""
        cache = self._settings.scoring.cache
        reloader = ModelReloader(
            registry=self._registry,
            load=self._load,
            prune=lambda used: prune(cache, used | self._registry.digests_in_use()),
            device=device,
            metrics=metrics,
            every_s=self._settings.scoring.reload_every_s,
            with_shadow=with_shadow,
        )
        reloader.start()
        return reloader

    def _load(self, model: ModelVersion) -> Scorer:
        return self._load_scorer(settings_for_model(self._settings, model))
