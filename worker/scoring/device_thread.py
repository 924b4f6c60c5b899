"""The device thread: loads the model, verifies it, runs batches and hands over their scores.

Everything that touches the device happens on this thread, because graphs and contexts belong to
threads. `worker.scoring.device.forward_pass` finds the image that a fault belongs to. Otherwise:

* the golden image scores wrong at the start: `start` raises and no message is ever taken;
* the device is lost, or the golden image scores wrong later: the process ends with
  `EXIT_DEVICE_LOST`; leases run out, messages return;
* a forward pass that hangs: a watchdog ends the process with `EXIT_STUCK`.

Models change between two batches, once the new one's golden image scores as it must. What was
submitted before and is scored after gets the new champion's verdict, unless it asked for a version.
A challenger in shadow scores only what the champion leaves time for, and none of its faults reaches
an image.

What becomes of the scores is the caller's: the worker stores verdicts, `unlatent serve` answers.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

from detection.errors import TransientError, UnlatentError
from detection.intake.version import INTAKE_VERSION, threshold_warning
from worker.ledger.interface import Role
from worker.scoring.batcher import Batcher
from worker.scoring.device.forward_pass import ForwardPass
from worker.scoring.device.inference_request import Request, ScoredRequest
from worker.scoring.interface import DeviceLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.scoring.interface import Scorer
    from worker.settings import Scoring
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

EXIT_DEVICE_LOST = 70
EXIT_STUCK = 71

#: While no image comes, the liveness file is touched and a new model is noticed this often.
_IDLE_S = 1.0
_LOAD_TIMEOUT_S = 900.0

#: What an image gets once its batch is through.
Outcome = TypeVar("Outcome")


class DeviceNotReady(UnlatentError):
    """The model did not become ready on the device."""


class ModelReplaced(TransientError):
    """The model version that this check was for is not on the device any more."""


class ScoringTimeout(TransientError):
    """The image was not scored in the time that it had."""


@dataclass(frozen=True, slots=True, eq=False)
class _ModelSwap:
    role: Role
    scorer: Scorer | None
    done: Future[None]


class InferenceThread(Generic[Request, Outcome]):
    """Owns the device thread.

    `load` builds the scorer on that thread, and `conclude` makes outcomes of a batch there, in its
    order, for what was scored and for the errors of what was not. `beat` is called with every
    round; `end_process` is how the process ends at once (a hung forward pass holds whatever an
    orderly exit would wait for).
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        *,
        conclude: Callable[
            [Sequence[ScoredRequest[Request] | Exception]], Sequence[Outcome | Exception]
        ],
        settings: Scoring,
        beat: Callable[[], object],
        metrics: Metrics,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._load = load
        self._conclude = conclude
        self._settings = settings
        self._beat = beat
        self._metrics = metrics
        self._end_process = end_process
        self._batcher: Batcher[Request, Outcome] = Batcher(
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_s,
            capacity=max(settings.threads, settings.max_batch),
        )
        self._loaded: Future[None] = Future()
        self._models: dict[Role, Scorer] = {}
        self._swaps: queue.SimpleQueue[_ModelSwap] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._forward_pass = ForwardPass(max_batch=settings.max_batch)
        self._threads = [
            threading.Thread(target=self._main, name="device", daemon=True),
            threading.Thread(target=self._watch, name="device-watchdog", daemon=True),
        ]

    def start(self) -> None:
        """Load and prove the model; raises what went wrong, and then nothing may be consumed."""
        self._threads[0].start()
        try:
            self._loaded.result(_LOAD_TIMEOUT_S)
        except TimeoutError as error:
            message = f"The model was not ready within {_LOAD_TIMEOUT_S:g} s."
            raise DeviceNotReady(message) from error
        self._threads[1].start()

    def stop(self) -> None:
        """Fail what waits, finish the batch that runs, end the threads."""
        self._stopping.set()
        self._batcher.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._settings.forward_timeout_s)

    @property
    def model_version(self) -> str:
        """Digest of the bundle that scores; known once `start` returned."""
        return self._models[Role.CHAMPION].model_version

    @property
    def shadow_version(self) -> str | None:
        """Digest of the bundle in shadow."""
        shadow = self._models.get(Role.SHADOW)
        return None if shadow is None else shadow.model_version

    @property
    def busy(self) -> bool:
        """Whether images wait for a batch."""
        return len(self._batcher) > 0

    def submit(self, request: Request) -> Future[Outcome]:
        """Queue one image; its future holds what `conclude` made of its score.

        Work for the shadow is dropped (`Displaced`) as soon as another image waits.
        """
        if request.role is Role.SHADOW:
            return self._batcher.submit_spare(request)
        return self._batcher.submit(request, alone=request.alone)

    def score(self, request: Request, *, wait_s: float) -> Outcome:
        """Queue one image and wait for its outcome; raises `ScoringTimeout` after `wait_s`."""
        future = self.submit(request)
        try:
            return future.result(wait_s)
        except TimeoutError as error:
            future.cancel()
            raise ScoringTimeout from error

    def swap_model(self, role: Role, scorer: Scorer | None) -> Future[None]:
        """Let a loaded model take a role between two batches, once its golden image is right.

        Without a scorer the role is left empty (only the shadow's may be). A future that fails says
        why everything stays as it was.
        """
        swap = _ModelSwap(role, scorer, Future())
        self._swaps.put(swap)
        return swap.done

    def _main(self) -> None:
        try:
            scorer = self._load()
            self._forward_pass.verify_golden(scorer)
        except BaseException as error:  # noqa: BLE001 - the caller of `start` gets it
            self._loaded.set_exception(error)
            return
        self._take_role(Role.CHAMPION, scorer)
        self._loaded.set_result(None)
        try:
            while not self._stopping.is_set():
                self._beat()
                self._change_models()
                self._batcher.run_next(self._run, idle_s=_IDLE_S)
        except BaseException:  # noqa: BLE001 - the process ends
            # A worker without its device thread would take messages and never answer them.
            _log.critical("device_thread_died", exc_info=True)
            self._end_process(EXIT_DEVICE_LOST)

    def _watch(self) -> None:
        limit_s = self._settings.forward_timeout_s
        while not self._stopping.wait(min(1.0, limit_s / 10)):
            since = self._forward_pass.running_since
            if since is not None and time.monotonic() - since > limit_s:
                _log.critical("forward_pass_stuck", limit_s=limit_s)
                self._end_process(EXIT_STUCK)
                return

    def _change_models(self) -> None:
        while not self._swaps.empty():
            swap = self._swaps.get()
            scorer = swap.scorer
            try:
                if scorer is not None and scorer not in self._models.values():
                    self._forward_pass.verify_golden(scorer)
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001 - the models that serve are not to blame
                swap.done.set_exception(error)
            else:
                self._take_role(swap.role, scorer)
                swap.done.set_result(None)
            self._beat()

    def _take_role(self, role: Role, scorer: Scorer | None) -> None:
        models = {**self._models, role: scorer}
        self._models = {known: model for known, model in models.items() if model is not None}
        self._metrics.serve_models(
            {
                known.value: (model.model_version, INTAKE_VERSION in model.intake_versions)
                for known, model in self._models.items()
            }
        )
        if scorer is not None and (warning := threshold_warning(scorer.intake_versions)):
            version = scorer.model_version
            _log.warning("thresholds_not_measured", model_version=version, warning=warning)

    def _run(self, requests: Sequence[Request]) -> list[Outcome | Exception]:
        # The batcher never mixes what is dropped under load with what is not.
        role = Role.SHADOW if requests[0].role is Role.SHADOW else Role.CHAMPION
        scorer = self._models.get(role)
        chosen = [request for request in requests if request.fits(scorer)]
        outcomes = iter(self._run_with(scorer, chosen, role) if scorer and chosen else ())
        return [next(outcomes) if request.fits(scorer) else ModelReplaced() for request in requests]

    def _run_with(
        self, scorer: Scorer, requests: Sequence[Request], role: Role
    ) -> Sequence[Outcome | Exception]:
        in_shadow = role is Role.SHADOW
        begun = time.monotonic()
        if not in_shadow:
            self._metrics.batch_size.observe(len(requests))
            for request in requests:
                self._metrics.batch_wait.observe(begun - request.submitted_at)
        # The same bytes twice in one batch cost one forward pass.
        unique = {request.sha256: request.sample for request in requests}
        try:
            scored = self._forward_pass.score(scorer, list(unique.values()), in_shadow=in_shadow)
        except Exception:
            # The device is lost, or even the golden image fails. No future is settled.
            _log.critical("device_lost", exc_info=True)
            self._end_process(EXIT_DEVICE_LOST)
            raise
        forward_s = time.monotonic() - begun
        if not in_shadow:
            self._metrics.forward.observe(forward_s)
        found = dict(zip(unique, scored, strict=True))
        return self._conclude(
            [
                score
                if isinstance(score := found[request.sha256], Exception)
                else ScoredRequest(request, score, scorer, begun, forward_s)
                for request in requests
            ]
        )
