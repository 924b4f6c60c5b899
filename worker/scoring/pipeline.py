"""The check of one image, from its lease to its outcome: the body of the tasks.

The lease is committed before anything is fetched, and is closed with every outcome that this code
catches. While the ledger is away, the thread waits in place, both for a lease and to close one:
what the threads hold then is all that the worker takes from the queue, and an outage never looks
like a death.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import structlog

from detection.errors import PermanentError, TransientError
from detection.intake.version import INTAKE_VERSION
from worker.database.engine import LedgerUnavailable, SchemaOutdated
from worker.ledger.interface import (
    AlreadyDone,
    HeldElsewhere,
    Lease,
    LeaseOutcome,
    Purpose,
    Role,
    State,
    UnknownImage,
    Verdict,
)
from worker.scoring.batcher import Displaced
from worker.scoring.device_thread import InferenceRequest
from worker.scoring.isolation_lock import SharedExclusiveLock
from worker.scoring.storage_budget import counts, within_budget
from worker.storage.interface import (
    AccessDenied,
    ObjectReplaced,
    StorageForbidden,
    StorageUnavailable,
    StorageUnreadable,
)
from worker.telemetry.tracing import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from worker.decoding.pool import Decoded
    from worker.ledger.interface import Ledger
    from worker.scoring.device_thread import InferenceThread
    from worker.scoring.evidence import EvidenceKeeper
    from worker.scoring.storage_breaker import StorageBreaker
    from worker.settings import Settings
    from worker.storage.interface import Storage
    from worker.telemetry.metrics import Metrics
    from worker.telemetry.tracing import Tracer

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 5.0
#: How long a thread waits for a ledger that is away before its message goes back to the queue.
_LEASE_PATIENCE_S = 60.0
#: No stage is given less time than this, however little of the lease is left.
_LEAST_WAIT_S = 1.0


class ScoringTimeout(TransientError):
    """The image got no verdict within its lease."""


class InternalError(PermanentError):
    """The worker failed on the image in a way that it does not foresee; its log says where."""

    reason: ClassVar[str] = "internal_error"


class Decoder(Protocol):
    """What the pipeline asks of `worker.decoding.pool.DecodePool`."""

    def decode(
        self,
        data: bytes,
        *,
        declared_type: str | None = None,
        key: str | None = None,
        sha256: str | None = None,
        alone: bool = False,
        wait_s: float,
    ) -> Decoded:
        """Decode one image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    lease: Lease
    role: Role
    begun: float
    #: Set when no other model's verdict will do.
    model_version: str | None


class Pipeline:
    """Checks images by id; called by many threads at once.

    `waiting` counts the messages that no worker has taken yet: while there are any, nothing is done
    that could be left. Without `evidence` none is kept.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        storage: Storage,
        decoder: Decoder,
        device: InferenceThread,
        breaker: StorageBreaker,
        metrics: Metrics,
        settings: Settings,
        worker: str,
        waiting: Callable[[], int],
        evidence: EvidenceKeeper | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._decoder = decoder
        self._device = device
        self._breaker = breaker
        self._metrics = metrics
        # A counter that begins with its first event would hide that one from every alert.
        metrics.failures.labels(StorageUnreadable.reason)
        self._settings = settings
        self._worker = worker
        self._waiting = waiting
        self._evidence = evidence
        self._tracer = tracer
        self._isolation = SharedExclusiveLock()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop waiting for a ledger that is away; what is under way goes on."""
        self._stopping.set()

    def score(self, image_id: UUID) -> None:
        """Check a pending image.

        Returns when the message may be acknowledged: the image has its verdict, ended, had ended
        before, or is leased to another thread. That one's message, or the sweeper after its lease
        ran out, sees to the image, so a second message for it adds nothing.

        Raises `TransientError` when the image is worth another try; its lease is closed then.
        """
        self._check(
            Role.CHAMPION,
            lambda: self._ledger.lease(
                image_id, worker=self._worker, duration=self._lease_duration
            ),
        )

    def rescore(self, image_id: UUID) -> None:
        """Check a scored image with the model version that serves; otherwise like `score`.

        When another version takes over meanwhile, the next try is for that one.
        """
        wanted = self._device.model_version
        self._check(
            Role.RESCORE,
            lambda: self._ledger.lease_for_rescore(
                image_id,
                model_version=wanted,
                worker=self._worker,
                duration=self._lease_duration,
            ),
            model_version=wanted,
        )

    @property
    def _lease_duration(self) -> timedelta:
        return timedelta(seconds=self._settings.scoring.lease_s)

    def _check(
        self,
        role: Role,
        ask: Callable[[], Lease | AlreadyDone | HeldElsewhere],
        *,
        model_version: str | None = None,
    ) -> None:
        def check_leased(lease: Lease) -> None:
            job = _Job(lease=lease, role=role, begun=time.monotonic(), model_version=model_version)
            self._work(job)

        self._breaker.raise_if_paused()
        wait_s = self._settings.scoring.lease_s
        with self._isolation.shared(wait_s=wait_s):
            lease = self._lease(ask)
            if lease is None:
                return
            if not lease.alone:
                check_leased(lease)
                return
            # Not kept while it waits: the suspect before it may end the process.
            self._release(lease, outcome=LeaseOutcome.RELEASED, detail="waits to be checked alone")
        with self._isolation.exclusive(wait_s=wait_s):
            lease = self._lease(ask)
            if lease is not None:
                check_leased(lease)

    def _lease(self, ask: Callable[[], Lease | AlreadyDone | HeldElsewhere]) -> Lease | None:
        try:
            answer = self._patiently(ask, patience_s=_LEASE_PATIENCE_S)
        except UnknownImage:
            _log.error("image_unknown")
            self._metrics.messages.labels("unknown").inc()
            return None
        if isinstance(answer, AlreadyDone):
            _log.info("image_already_ended", state=answer.state.value)
            self._metrics.messages.labels(answer.state.value).inc()
            return None
        if isinstance(answer, HeldElsewhere):
            _log.info("image_leased_elsewhere", until=answer.until.isoformat())
            self._metrics.messages.labels("busy").inc()
            return None
        self._metrics.messages.labels("suspect" if answer.alone else "leased").inc()
        return answer

    def _work(self, job: _Job) -> None:
        self._tracer.note(attempt=job.lease.attempt)
        with structlog.contextvars.bound_contextvars(attempt=job.lease.attempt):
            self._outcome(job)

    def _outcome(self, job: _Job) -> None:
        if job.lease.upload.uploaded_at is not None:
            waited = datetime.now(UTC) - job.lease.upload.uploaded_at
            self._metrics.queue_wait.observe(max(0.0, waited.total_seconds()))
        try:
            self._judge(job)
        except PermanentError as error:
            self._end(job.lease, error)
        except (TransientError, SchemaOutdated) as error:
            self._give_back(job.lease, error)
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not look like a death
            _log.exception("check_failed")
            failure = InternalError(f"Unexpected {type(error).__name__} in the worker.")
            self._end(job.lease, failure)

    def _judge(self, job: _Job) -> None:
        begun = time.monotonic()
        with self._tracer.span("fetch"):
            data = self._fetch(job)
        fetched = time.monotonic()
        self._metrics.fetch.observe(fetched - begun)
        with self._tracer.span("decode"):
            decoding = self._decode(job, data)
        with decoding as decoded:
            del data  # the compressed bytes are not worth keeping beside the pixels
            ready = time.monotonic()
            self._metrics.decode.observe(ready - fetched)
            timings_ms = {"fetch": 1000 * (fetched - begun), "decode": 1000 * (ready - fetched)}
            known = self._ledger.reusable_verdict(
                decoded.facts.sha256,
                model_version=job.model_version or self._device.model_version,
                intake_version=INTAKE_VERSION,
            )
            if known is not None:
                reused = self._reuse(job, known, decoded, timings_ms)
                self._note(job, reused)
                if self._evidence is not None:
                    self._evidence.copy(reused, known)
                return
            request = InferenceRequest(
                lease=job.lease,
                facts=decoded.facts,
                sample=decoded.sample,
                role=job.role,
                timings_ms=timings_ms,
                submitted_at=ready,
                model_version=job.model_version,
            )
            verdict = self._score(request, self._left_s(job))
            self._trace(request, verdict)
            self._note(job, verdict)
            if self._evidence is not None:
                self._evidence.keep(verdict, decoded.frame(verdict.frame))
            self._shadow(request)

    def _score(self, request: InferenceRequest, wait_s: float) -> Verdict:
        future = self._device.submit(request)
        try:
            return future.result(wait_s)
        except TimeoutError as error:
            future.cancel()
            raise ScoringTimeout from error

    def _trace(self, request: InferenceRequest, verdict: Verdict) -> None:
        """Add what the device thread did; it only measures, and has no time for more."""
        batched = request.submitted_at + verdict.timings_ms["batch_wait"] / 1000
        forwarded = batched + verdict.timings_ms["forward"] / 1000
        self._tracer.record("batch", begun_s=request.submitted_at, ended_s=batched)
        self._tracer.record("forward", begun_s=batched, ended_s=forwarded)
        self._tracer.record("persist", begun_s=forwarded, ended_s=time.monotonic())

    def _note(self, job: _Job, verdict: Verdict) -> None:
        self._tracer.note(model_version=verdict.model_version)
        self._metrics.verdicts.labels(verdict.label, verdict.model_version, job.role).inc()
        if verdict.outside is not None:
            self._metrics.inapplicable.labels(verdict.outside.partition(":")[0]).inc()
        _log.info(
            "verdict_stored",
            label=verdict.label,
            score=round(verdict.score, 6),
            inapplicable_reason=verdict.outside,
            model_version=verdict.model_version,
            reused=verdict.reused_from is not None,
            frame=verdict.frame,
            total_ms=round(1000 * (time.monotonic() - job.begun), 1),
        )

    def _shadow(self, request: InferenceRequest) -> None:
        """Have the challenger judge the image too, if that costs nobody anything.

        The image has its verdict: whatever goes wrong here is counted and forgotten.
        """
        version = self._device.shadow_version
        share = self._settings.scoring.shadow_share
        # A suspect that kills the process must have been judged by one model.
        judged = request.role is Role.CHAMPION and not request.lease.alone
        if version is None or not judged or not in_share(request.lease.image_id, share):
            return
        outcome = "dropped"
        try:
            idle = not self._device.busy and not self._waiting()
            if idle and self._judge_in_shadow(request, version):
                outcome = "scored"
        except Displaced:
            pass
        except Exception as error:  # noqa: BLE001 - the check itself went well
            outcome = "failed"
            _log.warning("shadow_failed", error=f"{type(error).__name__}: {error}")
        self._metrics.shadow.labels(outcome).inc()

    def _judge_in_shadow(self, request: InferenceRequest, version: str) -> bool:
        lease = self._ledger.lease_for_rescore(
            request.lease.image_id,
            model_version=version,
            worker=self._worker,
            duration=self._lease_duration,
            purpose=Purpose.SHADOW,
        )
        if not isinstance(lease, Lease):
            return False
        wanted = replace(
            request,
            lease=lease,
            role=Role.SHADOW,
            model_version=version,
            submitted_at=time.monotonic(),
        )
        try:
            verdict = self._score(wanted, self._settings.scoring.lease_s)
        except Exception as error:
            self._release(lease, outcome=LeaseOutcome.RELEASED, detail=f"{type(error).__name__}")
            raise
        self._metrics.verdicts.labels(verdict.label, version, Role.SHADOW).inc()
        return True

    def _fetch(self, job: _Job) -> bytes:
        upload = job.lease.upload
        try:
            data = self._storage.fetch(
                upload.bucket,
                upload.key,
                version_id=upload.version_id,
                etag=upload.etag,
                max_bytes=self._settings.intake.max_bytes,
            )
        except (AccessDenied, StorageUnavailable) as error:
            judged = self._breaker.judge(upload, error, attempt=job.lease.attempt)
            raise within_budget(
                judged,
                self._settings.s3,
                tries=job.lease.unreadable,
                tried_for=job.lease.retried_for,
            ) from error
        self._breaker.record_success(upload)
        return data

    def _decode(self, job: _Job, data: bytes) -> Decoded:
        upload = job.lease.upload
        # Twice: an image that kills its process is decoded once more.
        intake = self._settings.intake
        decoding_s = 2 * intake.timeout_s + intake.signals_timeout_s
        return self._decoder.decode(
            data,
            declared_type=upload.content_type,
            key=upload.key,
            sha256=upload.sha256,
            alone=job.lease.alone,
            wait_s=max(_LEAST_WAIT_S, self._left_s(job) - decoding_s),
        )

    def _reuse(
        self, job: _Job, known: Verdict, decoded: Decoded, timings_ms: dict[str, float]
    ) -> Verdict:
        verdict = replace(
            known,
            image_id=job.lease.image_id,
            lease_id=job.lease.lease_id,
            facts=decoded.facts,
            role=job.role,
            # The other image's; this one gets a copy.
            evidence_uri=None,
            reused_from=known.reused_from or known.image_id,
            timings_ms=timings_ms,
        )
        with self._tracer.span("persist"):
            self._ledger.record([verdict])
        self._metrics.reused.inc()
        return verdict

    def _left_s(self, job: _Job) -> float:
        spent_s = time.monotonic() - job.begun
        return max(_LEAST_WAIT_S, self._settings.scoring.lease_s - spent_s)

    def _end(self, lease: Lease, error: PermanentError) -> None:
        state = State.SUPERSEDED if isinstance(error, ObjectReplaced) else State.FAILED
        self._close(
            lambda: self._ledger.end(lease, state=state, reason=error.reason, detail=str(error))
        )
        self._metrics.failures.labels(error.reason).inc()
        self._tracer.note(reason=error.reason)
        _log.info("image_ended", state=state.value, reason=error.reason, detail=str(error))

    def _give_back(self, lease: Lease, error: TransientError | SchemaOutdated) -> None:
        outcome = LeaseOutcome.UNREADABLE if counts(error) else LeaseOutcome.RETRY
        if isinstance(error, StorageForbidden):
            outcome = LeaseOutcome.RELEASED
        detail = f"{type(error).__name__}: {error}"
        self._release(lease, outcome=outcome, detail=detail)
        self._metrics.retries.labels(type(error).__name__).inc()
        _log.warning("lease_released", outcome=outcome.value, error=detail)

    def _release(self, lease: Lease, *, outcome: LeaseOutcome, detail: str) -> None:
        self._close(lambda: self._ledger.release(lease, outcome=outcome, detail=detail))

    def _close(self, close: Callable[[], None]) -> None:
        # As long as the message is ours; the ledger takes back a death when the lease closes late.
        self._patiently(close, patience_s=self._settings.queue.visibility_timeout_s)

    def _patiently(self, call: Callable[[], _T], *, patience_s: float) -> _T:
        deadline = time.monotonic() + patience_s
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return call()
            except LedgerUnavailable as error:
                if self._stopping.is_set() or time.monotonic() + delay_s > deadline:
                    raise
                _log.warning("ledger_unavailable", error=str(error), wait_s=delay_s)
                self._stopping.wait(delay_s)
                delay_s = min(2 * delay_s, _MAX_DELAY_S)


def in_share(image_id: UUID, share: float) -> bool:
    """Say whether an image is in a share, 0 to 1, of all; every worker says the same of it."""
    drawn = hashlib.blake2b(image_id.bytes, digest_size=8).digest()
    return int.from_bytes(drawn) < share * 2**64
