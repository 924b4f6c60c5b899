"""Polls the registry and hot-swaps the champion and shadow models.

A thread polls the registry. A new model is downloaded, verified and loaded aside while the old one
goes on scoring; the device thread proves it on its golden image and swaps between two batches. No
message is dropped: an image that was submitted before gets the verdict of whichever model scores
it, and says so. A model that cannot be fetched, verified or proven leaves everything as it is.
Local copies of models that went are removed when another comes.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import structlog

from detection.errors import TransientError, UnlatentError
from worker.backoff import backoff_s
from worker.ledger.interface import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.models.registry import ModelsRegistry, ModelVersion
    from worker.scoring.device_thread import InferenceThread
    from worker.scoring.interface import Scorer
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

#: A model that was refused is tried again after this; it may have been stored again.
_REFUSED_S = 60.0
_FIRST_DELAY_S = 1.0
_MAX_DELAY_S = 15.0


class WrongModel(UnlatentError):
    """The loaded bundle is not the model version that the registry names."""


class ModelReloader:
    """Keeps a device's models as the registry wants them.

    `load` fetches and builds one; `prune` hears which digests the device uses, at the start and
    after every change. Not `with_shadow`, the champion is all that it follows.
    """

    def __init__(
        self,
        *,
        registry: ModelsRegistry,
        load: Callable[[ModelVersion], Scorer],
        prune: Callable[[set[str]], object],
        device: InferenceThread[Any, Any],
        metrics: Metrics,
        every_s: float,
        with_shadow: bool = True,
    ) -> None:
        self._registry = registry
        self._load = load
        self._prune = prune
        self._pruned: set[str] | None = None
        self._device = device
        self._metrics = metrics
        self._every_s = every_s
        self._with_shadow = with_shadow
        self._shadow: Scorer | None = None
        self._refused: dict[tuple[Role, str], float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-reloader", daemon=True)

    def start(self) -> None:
        """Begin to follow; the device must have started."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; a model that is being loaded is not waited for."""
        self._stopping.set()

    def follow(self) -> None:
        """Look at the pointers once and do what they say; raises `LedgerUnavailable`."""
        active = self._registry.active()
        champion = active.champion
        if champion is not None and champion.digest != self._device.model_version:
            self._swap(Role.CHAMPION, champion)
        shadow = active.shadow if self._with_shadow else None
        wanted = None if shadow is None else shadow.digest
        if wanted != self._device.shadow_version:
            self._swap(Role.SHADOW, shadow)
        used = {self._device.model_version, self._device.shadow_version or ""}
        if used != self._pruned:
            self._prune(used)
            self._pruned = used

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.follow()
            except TransientError as error:
                _log.warning("registry_unavailable", error=str(error))
            except Exception:  # noqa: BLE001 - the thread must live on
                _log.exception("model_reload_failed")

    def _swap(self, role: Role, model: ModelVersion | None) -> None:
        digest = None if model is None else model.digest
        key = (role, digest or "")
        if time.monotonic() < self._refused.get(key, 0.0):
            return
        begun = time.monotonic()
        try:
            scorer = None if model is None else self._loaded(model)
            self._device.swap_model(role, scorer).result()
        except TransientError as error:
            _log.warning("model_unavailable", role=role, digest=digest, error=str(error))
            self._metrics.model_changes.labels(role, "unavailable").inc()
        except Exception as error:  # noqa: BLE001 - what serves goes on, whatever it was
            self._refused[key] = time.monotonic() + _REFUSED_S
            _log.exception("model_refused", role=role, digest=digest, error=str(error))
            self._metrics.model_changes.labels(role, "refused").inc()
        else:
            if role is Role.SHADOW:
                self._shadow = scorer
            took_s = time.monotonic() - begun
            _log.info("model_changed", role=role, digest=digest, took_s=round(took_s, 1))
            self._metrics.model_changes.labels(role, "done").inc()

    def _loaded(self, model: ModelVersion) -> Scorer:
        # A challenger that is promoted has been here all the while.
        if self._shadow is not None and self._shadow.model_version == model.digest:
            return self._shadow
        scorer = self._load(model)
        if scorer.model_version != model.digest:
            raise WrongModel(f"asked for {model.digest}, loaded {scorer.model_version}")
        return scorer


def first_model(
    registry: ModelsRegistry, load: Callable[[ModelVersion], Scorer], default: Callable[[], Scorer]
) -> Scorer:
    """Load the champion, or the default before the first promotion; waits for absent services.

    A worker that scored with a model that is not the champion would be worse than none.
    """
    failures = 0
    while True:
        try:
            champion = registry.champion()
            return default() if champion is None else load(champion)
        except TransientError as error:
            delay_s = backoff_s(failures, first_s=_FIRST_DELAY_S, longest_s=_MAX_DELAY_S)
            _log.warning("champion_unavailable", error=str(error), wait_s=delay_s)
            time.sleep(delay_s)
            failures += 1
