"""The walk of one image, from its lease to its outcome: the body of the tasks.

    lease → fetch → decode → score (which stores the verdict) → evidence → shadow

The lease is committed before anything is fetched, and is closed with every outcome that this code
catches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import structlog

from detection.errors import PermanentError, TransientError
from worker.database.engine import SchemaOutdated
from worker.ledger.coalescing import MAX_EVERY_S, KnownVerdicts
from worker.ledger.interface import Role
from worker.scoring.check_telemetry import CheckTelemetry
from worker.scoring.device.leased_request import LeasedRequest
from worker.scoring.isolation_lock import SharedExclusiveLock
from worker.scoring.leases import Leases
from worker.scoring.shadow_scoring import ShadowScoring
from worker.scoring.storage_budget import within_budget
from worker.storage.interface import AccessDenied, StorageUnavailable
from worker.telemetry.tracer import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from worker.decoding.pool import Decoded, DecodePool
    from worker.ledger.interface import Lease, Ledger, Verdict
    from worker.scoring.device_thread import InferenceThread
    from worker.scoring.evidence import EvidenceKeeper
    from worker.scoring.storage_breaker import StorageBreaker
    from worker.settings import Settings
    from worker.storage.interface import Storage
    from worker.telemetry.metrics import Metrics
    from worker.telemetry.tracer import Tracer

_log = structlog.get_logger(__name__)

#: No stage is given less time than this, however little of the lease is left.
_LEAST_WAIT_S = 1.0


class InternalError(PermanentError):
    """The worker failed on the image in a way that it does not foresee; its log says where."""

    reason: ClassVar[str] = "internal_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    lease: Lease
    role: Role
    #: Set when no other model's verdict will do.
    model_version: str | None
    begun: float = field(default_factory=time.monotonic)
    timings_ms: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """Checks images by id; called by many threads at once.

    `waiting` counts the messages that no worker has taken yet. Without `evidence` none is kept.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        storage: Storage,
        decoder: DecodePool,
        device: InferenceThread[LeasedRequest, Verdict],
        breaker: StorageBreaker,
        metrics: Metrics,
        settings: Settings,
        worker: str,
        waiting: Callable[[], int],
        evidence: EvidenceKeeper | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._ledger = ledger
        self._known = KnownVerdicts(ledger, every_s=min(settings.scoring.max_wait_s, MAX_EVERY_S))
        self._storage = storage
        self._decoder = decoder
        self._device = device
        self._breaker = breaker
        self._settings = settings
        self._evidence = evidence
        self._telemetry = CheckTelemetry(metrics=metrics, tracer=tracer)
        self._isolation = SharedExclusiveLock()
        self._leases = Leases(ledger, worker=worker, settings=settings, metrics=metrics)
        self._shadow = ShadowScoring(
            leases=self._leases,
            device=device,
            waiting=waiting,
            settings=settings.scoring,
            metrics=metrics,
        )

    def stop(self) -> None:
        """Stop waiting for a ledger that is away; what is under way goes on."""
        self._leases.stop()

    def score(self, image_id: UUID) -> None:
        """Check a pending image.

        Returns when the message may be acknowledged: the image has its verdict, ended, had ended
        before, or is leased to another thread. In that case the message of the other thread, or
        later the sweeper, handles the image, and this message is redundant.

        Raises `TransientError` when the image is worth another try; its lease is closed then.
        """
        self._check(image_id, Role.CHAMPION, model_version=None)

    def rescore(self, image_id: UUID) -> None:
        """Check a scored image with the model version that serves; otherwise like `score`.

        When another version takes over meanwhile, the next try is for that one.
        """
        self._check(image_id, Role.RESCORE, model_version=self._device.model_version)

    def _check(self, image_id: UUID, role: Role, *, model_version: str | None) -> None:
        """Lease the image and walk on, beside other images or, with a suspect, alone."""
        self._breaker.raise_if_paused()
        wait_s = self._settings.scoring.lease_s
        with self._isolation.shared(wait_s=wait_s):
            lease = self._leases.take(image_id, model_version=model_version)
            if lease is None:
                return
            if not lease.alone:
                self._walk(_Job(lease=lease, role=role, model_version=model_version))
                return
            # Not kept while it waits: the suspect before it may end the process.
            self._leases.release(lease, detail="waits to be checked alone")
        with self._isolation.exclusive(wait_s=wait_s):
            lease = self._leases.take(image_id, model_version=model_version)
            if lease is not None:
                self._walk(_Job(lease=lease, role=role, model_version=model_version))

    def _walk(self, job: _Job) -> None:
        """Take a leased image through all steps, and close its lease if no verdict did."""
        with structlog.contextvars.bound_contextvars(attempt=job.lease.attempt):
            self._telemetry.begin(job.lease)
            try:
                self._judge(job)
            except PermanentError as error:
                self._end(job, error)
            except (TransientError, SchemaOutdated) as error:
                self._leases.give_back(job.lease, error)
                raise
            except Exception as error:  # noqa: BLE001 - a bug must not look like a death
                _log.exception("check_failed")
                self._end(job, InternalError(f"Unexpected {type(error).__name__} in the worker."))

    def _end(self, job: _Job, error: PermanentError) -> None:
        self._leases.end(job.lease, error)
        self._telemetry.end_without_verdict(error)

    def _judge(self, job: _Job) -> None:
        with self._telemetry.stage("fetch", job.timings_ms):
            data = self._fetch(job)
        with self._telemetry.stage("decode", job.timings_ms):
            decoding = self._decode(job, data)
        with decoding as decoded:
            del data  # the compressed bytes are not worth keeping beside the pixels
            known = self._known.find(
                decoded.facts.sha256,
                model_version=job.model_version or self._device.model_version,
            )
            if known is not None:
                self._reuse(job, known, decoded)
            else:
                self._score(job, decoded)

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

    def _reuse(self, job: _Job, known: Verdict, decoded: Decoded) -> None:
        """Store the verdict that the same model gave the same bytes before."""
        verdict = replace(
            known,
            image_id=job.lease.image_id,
            lease_id=job.lease.lease_id,
            facts=decoded.facts,
            role=job.role,
            # The other image's; this one gets a copy.
            evidence_uri=None,
            reused_from=known.reused_from or known.image_id,
            timings_ms=job.timings_ms,
        )
        with self._telemetry.reuse():
            self._ledger.record([verdict])
        self._telemetry.end(verdict, begun=job.begun)
        if self._evidence is not None:
            self._evidence.copy(verdict, known)

    def _score(self, job: _Job, decoded: Decoded) -> None:
        """Have the device thread score the image and store its verdict; then do what may follow."""
        request = LeasedRequest(
            lease=job.lease,
            alone=job.lease.alone,
            facts=decoded.facts,
            sha256=decoded.facts.sha256,
            sample=decoded.sample,
            role=job.role,
            timings_ms=job.timings_ms,
            submitted_at=time.monotonic(),
            model_version=job.model_version,
        )
        verdict = self._device.score(request, wait_s=self._left_s(job))
        self._telemetry.add_batch(request, verdict)
        self._telemetry.end(verdict, begun=job.begun)
        if self._evidence is not None:
            self._evidence.keep(verdict, decoded.frame(verdict.frame))
        self._shadow.score(request)

    def _left_s(self, job: _Job) -> float:
        spent_s = time.monotonic() - job.begun
        return max(_LEAST_WAIT_S, self._settings.scoring.lease_s - spent_s)
