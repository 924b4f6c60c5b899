"""The device thread: loads the model, verifies it, runs batches and stores verdicts.

Everything that touches the device happens on this thread, because graphs and contexts belong to
threads. What it does about faults:

* the golden image scores wrong at the start: `start` raises and no message is ever taken;
* out of device memory: halves of the batch, down to one image, which fails alone;
* any other exception: every image of the batch by itself, so that only the guilty one fails, and
  only if the golden image still scores; otherwise the process ends;
* the device is lost: the process ends with `EXIT_DEVICE_LOST`; leases run out, messages return;
* a forward pass that hangs: a watchdog ends the process with `EXIT_STUCK`.

Models change between two batches, once the new one's golden image scores as it must. What was
submitted before and is scored after gets the new champion's verdict, unless it asked for a version.
A challenger in shadow scores only what the champion leaves time for, and none of its faults reaches
an image.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, ClassVar

import structlog

from detection.errors import PermanentError, TransientError, UnlatentError
from detection.intake.version import INTAKE_VERSION, threshold_warning
from detection.score import decide
from worker.ledger.interface import ImageFacts, Lease, Role, Verdict
from worker.scoring.batcher import Batcher, CountMismatch
from worker.scoring.interface import DeviceLost, DeviceMemoryExceeded, Golden

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from detection.intake.animation import ShownFrame
    from detection.score import Score
    from worker.ledger.interface import Ledger
    from worker.scoring.interface import Scorer
    from worker.settings import Scoring
    from worker.telemetry.health import Health
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

EXIT_DEVICE_LOST = 70
EXIT_STUCK = 71

#: While no image comes, the liveness file is touched and a new model is noticed this often.
_IDLE_S = 1.0
_LOAD_TIMEOUT_S = 900.0
_PERSIST_TRIES = 3
_PERSIST_DELAY_S = 0.2


class DeviceNotReady(UnlatentError):
    """The model did not become ready on the device."""


class GoldenMismatch(UnlatentError):
    """The golden image does not score as it must: the device or the weights are broken."""


class ModelReplaced(TransientError):
    """The model version that this check was for is not on the device any more."""


class OutOfDeviceMemory(PermanentError):
    """The image alone does not fit into the device's memory."""

    reason: ClassVar[str] = "out_of_device_memory"


class ScoringFailed(PermanentError):
    """The detector failed on the image, alone and with a sound device."""

    reason: ClassVar[str] = "scoring_failed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferenceRequest:
    """One image on its way through the device; `model_version` is set if no other one will do.

    `sample` are the frames to be judged, one for a still.
    """

    lease: Lease
    facts: ImageFacts
    sample: tuple[ShownFrame, ...]
    role: Role
    timings_ms: Mapping[str, float]
    submitted_at: float
    model_version: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _ModelSwap:
    role: Role
    scorer: Scorer | None
    done: Future[None]


class InferenceThread:
    """Owns the device thread.

    `load` builds the scorer on that thread; `end_process` is how the process ends at once (a hung
    forward pass holds whatever an orderly exit would wait for).
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        *,
        ledger: Ledger,
        settings: Scoring,
        health: Health,
        metrics: Metrics,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._load = load
        self._ledger = ledger
        self._settings = settings
        self._health = health
        self._metrics = metrics
        self._end_process = end_process
        self._batcher: Batcher[InferenceRequest, Verdict] = Batcher(
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_s,
            capacity=max(settings.threads, settings.max_batch),
        )
        self._loaded: Future[None] = Future()
        self._models: dict[Role, Scorer] = {}
        self._swaps: queue.SimpleQueue[_ModelSwap] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._forward_since: float | None = None
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

    def submit(self, request: InferenceRequest) -> Future[Verdict]:
        """Queue one image; its future holds the verdict once the ledger has it.

        Work for the shadow is dropped (`Displaced`) as soon as another image waits.
        """
        if request.role is Role.SHADOW:
            return self._batcher.submit_spare(request)
        return self._batcher.submit(request, alone=request.lease.alone)

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
            self._verify_golden(scorer, (1, self._settings.max_batch))
        except BaseException as error:  # noqa: BLE001 - whoever started us gets it
            self._loaded.set_exception(error)
            return
        self._take_role(Role.CHAMPION, scorer)
        self._loaded.set_result(None)
        try:
            while not self._stopping.is_set():
                self._health.beat()
                self._change_models()
                self._batcher.run_next(self._run, idle_s=_IDLE_S)
        except BaseException:  # noqa: BLE001 - the process ends
            # A worker without its device thread would take messages and never answer them.
            _log.critical("device_thread_died", exc_info=True)
            self._end_process(EXIT_DEVICE_LOST)

    def _watch(self) -> None:
        limit_s = self._settings.forward_timeout_s
        while not self._stopping.wait(min(1.0, limit_s / 10)):
            since = self._forward_since
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
                    self._verify_golden(scorer, (1, self._settings.max_batch))
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001 - the models that serve are not to blame
                swap.done.set_exception(error)
            else:
                self._take_role(swap.role, scorer)
                swap.done.set_result(None)
            self._health.beat()

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
            _log.warning(
                "thresholds_not_measured", model_version=scorer.model_version, warning=warning
            )

    def _verify_golden(self, scorer: Scorer, sizes: Sequence[int]) -> None:
        golden: Golden = scorer.golden()
        for size in sizes:
            try:
                scores = scorer.score([golden.image] * size)
            except DeviceMemoryExceeded:
                if size == 1:
                    raise
                _log.warning("batch_does_not_fit", size=size)
                continue
            if len(scores) != size:
                raise GoldenMismatch(f"{size} golden images gave {len(scores)} scores.")
            for name, expected in golden.branches.items():
                allowed = golden.tolerance * max(1.0, abs(expected))
                for score in scores:
                    found = score.branches[name]
                    # Written so that a logit that is no number fails too.
                    if not abs(found - expected) <= allowed:
                        raise GoldenMismatch(
                            f"The golden image of model {scorer.model_version} gets {found:.6f} "
                            f"from the {name} branch in a batch of {size}, not {expected:.6f}."
                        )

    def _run(self, requests: Sequence[InferenceRequest]) -> list[Verdict | Exception]:
        # The batcher never mixes what is dropped under load with what is not.
        role = Role.SHADOW if requests[0].role is Role.SHADOW else Role.CHAMPION
        scorer = self._models.get(role)
        fit = [
            scorer is not None and request.model_version in {None, scorer.model_version}
            for request in requests
        ]
        chosen = [request for request, fits in zip(requests, fit, strict=True) if fits]
        outcomes = iter(self._run_with(scorer, chosen, role) if scorer and chosen else ())
        return [next(outcomes) if fits else ModelReplaced() for fits in fit]

    def _run_with(
        self, scorer: Scorer, requests: Sequence[InferenceRequest], role: Role
    ) -> list[Verdict | Exception]:
        begun = time.monotonic()
        score = self._score_in_shadow if role is Role.SHADOW else self._score
        if role is not Role.SHADOW:
            self._metrics.batch_size.observe(len(requests))
            for request in requests:
                self._metrics.batch_wait.observe(begun - request.submitted_at)
        # The same bytes twice in one batch cost one forward pass.
        unique = {request.facts.sha256: request for request in requests}
        try:
            scored = self._decided(scorer, list(unique.values()), score)
        except Exception:
            # The device is lost, or even the golden image fails. No future is settled: what
            # was in the batch stays pending.
            _log.critical("device_lost", exc_info=True)
            self._end_process(EXIT_DEVICE_LOST)
            raise
        scores = dict(zip(unique, scored, strict=True))
        forward_s = time.monotonic() - begun
        if role is not Role.SHADOW:
            self._metrics.forward.observe(forward_s)
        outcomes = [
            self._verdict(request, scores[request.facts.sha256], scorer, begun, forward_s)
            for request in requests
        ]
        with self._metrics.persist.time():
            return self._persist(outcomes)

    def _decided(
        self,
        scorer: Scorer,
        requests: Sequence[InferenceRequest],
        score: Callable[[Scorer, Sequence[NDArray[np.uint8]]], list[Score | Exception]],
    ) -> list[Score | Exception]:
        """Score every frame of every request, no more at once than a batch, and decide by image."""
        images = [frame.pixels for request in requests for frame in request.sample]
        size = self._settings.max_batch
        parts = [score(scorer, images[at : at + size]) for at in range(0, len(images), size)]
        outcomes = chain.from_iterable(parts)
        decided: list[Score | Exception] = []
        for request in requests:
            frames = list(islice(outcomes, len(request.sample)))
            scores = [outcome for outcome in frames if not isinstance(outcome, Exception)]
            failures = [outcome for outcome in frames if isinstance(outcome, Exception)]
            decided.append(failures[0] if failures else decide(request.sample, scores))
        return decided

    def _score_in_shadow(
        self, scorer: Scorer, images: Sequence[NDArray[np.uint8]]
    ) -> list[Score | Exception]:
        try:
            return list(self._forward(scorer, images))
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - a challenger's fault is no image's
            _log.exception("shadow_batch_failed", size=len(images))
            return [error] * len(images)

    def _score(
        self, scorer: Scorer, images: Sequence[NDArray[np.uint8]]
    ) -> list[Score | Exception]:
        try:
            return list(self._forward(scorer, images))
        except DeviceMemoryExceeded as error:
            if len(images) == 1:
                return [_caused(OutOfDeviceMemory(), error)]
            _log.warning("device_memory_exhausted", size=len(images))
            half = (len(images) + 1) // 2
            return self._score(scorer, images[:half]) + self._score(scorer, images[half:])
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - an image may make the detector raise anything
            _log.exception("batch_failed", size=len(images))
            if len(images) > 1:
                return [outcome for image in images for outcome in self._score(scorer, [image])]
            if isinstance(error, PermanentError):
                return [error]
            self._verify_golden(scorer, (1,))
            return [_caused(ScoringFailed(f"{type(error).__name__} in the detector."), error)]

    def _forward(self, scorer: Scorer, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        self._forward_since = time.monotonic()
        try:
            scores = scorer.score(images)
        finally:
            self._forward_since = None
        if len(scores) != len(images):
            message = f"{len(images)} images gave {len(scores)} scores."
            raise CountMismatch(message)
        if not all(0 <= score.probability <= 1 for score in scores):
            message = "A score is not a probability."
            raise UnlatentError(message)
        return scores

    def _verdict(
        self,
        request: InferenceRequest,
        score: Score | Exception,
        scorer: Scorer,
        begun: float,
        forward_s: float,
    ) -> Verdict | Exception:
        if isinstance(score, Exception):
            return score
        return Verdict(
            image_id=request.lease.image_id,
            lease_id=request.lease.lease_id,
            facts=request.facts,
            model_version=scorer.model_version,
            role=request.role,
            score=score.probability,
            label=score.label.value,
            branches=dict(score.branches),
            decided_by=score.decided_by,
            operating_point=score.operating_point,
            prior=score.prior,
            device=scorer.device,
            dtype=scorer.dtype,
            intake_version=INTAKE_VERSION,
            thresholds_hold=INTAKE_VERSION in scorer.intake_versions,
            timings_ms={
                **request.timings_ms,
                "batch_wait": 1000 * (begun - request.submitted_at),
                "forward": 1000 * forward_s,
            },
            error_map=score.error_map,
            outside=score.outside,
            frame=score.frame,
            distance=score.distance,
            tiles=score.tiles,
        )

    def _persist(self, outcomes: list[Verdict | Exception]) -> list[Verdict | Exception]:
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        if not verdicts:
            return outcomes
        try:
            self._record(verdicts)
        except TransientError as error:
            return [error if isinstance(outcome, Verdict) else outcome for outcome in outcomes]
        except Exception:  # noqa: BLE001 - one row may be what the ledger refuses
            _log.exception("verdict_store_failed", size=len(verdicts))
            return [self._record_alone(outcome) for outcome in outcomes]
        return outcomes

    def _record_alone(self, outcome: Verdict | Exception) -> Verdict | Exception:
        if isinstance(outcome, Verdict):
            try:
                self._record([outcome])
            except Exception as error:  # noqa: BLE001 - it is this image's outcome
                return error
        return outcome

    def _record(self, verdicts: Sequence[Verdict]) -> None:
        for tries_left in reversed(range(_PERSIST_TRIES)):
            try:
                self._ledger.record(verdicts)
            except TransientError as error:
                _log.warning("verdict_store_retried", error=str(error), tries_left=tries_left)
                if not tries_left:
                    raise
                self._health.beat()
                self._stopping.wait(_PERSIST_DELAY_S)
            else:
                return


def _caused(error: PermanentError, cause: BaseException) -> PermanentError:
    error.__cause__ = cause
    return error
