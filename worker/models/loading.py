"""Loading detectors by the settings: the bundle that they name, or a registered one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.models.registry import ModelVersion
    from worker.scoring.interface import Scorer
    from worker.settings import Scoring, Settings


def load_detector(settings: Scoring) -> Scorer:
    """Load the bundle; torch is imported here and in `released`, nowhere else in the service."""
    from worker.scoring.torch_scorer import TorchScorer

    return TorchScorer.load(settings)


def settings_for_model(settings: Settings, model: ModelVersion) -> Scoring:
    """Download a registered bundle, if it is not in the cache; return the settings that name it."""
    from worker.models.bundle_store import open_bundles

    with open_bundles(settings) as bundles:
        bundle = bundles.fetch(model.uri, model.digest, settings.scoring.cache)
    return settings.scoring.model_copy(update={"bundle": str(bundle.folder)})
