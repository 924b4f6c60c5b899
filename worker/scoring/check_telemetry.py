"""What a check leaves behind for operators: spans, metrics and the log line of its verdict."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from worker.storage.interface import StorageUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from detection.errors import PermanentError
    from worker.ledger.interface import Lease, Verdict
    from worker.scoring.device.leased_request import LeasedRequest
    from worker.telemetry.metrics import Metrics
    from worker.telemetry.tracer import Tracer

_log = structlog.get_logger(__name__)


class CheckTelemetry:
    """Measures checks; called by many threads at once, each about the check that it makes."""

    def __init__(self, *, metrics: Metrics, tracer: Tracer) -> None:
        self._metrics = metrics
        self._tracer = tracer
        # A counter that begins with its first event would hide that one from every alert.
        metrics.failures.labels(StorageUnreadable.reason)

    def begin(self, lease: Lease) -> None:
        """Note which try this is, and how long the image has waited since its upload."""
        self._tracer.note(attempt=lease.attempt)
        if lease.upload.uploaded_at is not None:
            waited = datetime.now(UTC) - lease.upload.uploaded_at
            self._metrics.queue_wait.observe(max(0.0, waited.total_seconds()))

    @contextmanager
    def stage(self, name: str, timings_ms: dict[str, float]) -> Iterator[None]:
        """Measure "fetch" or "decode", and add it to the timings of the verdict if it succeeds."""
        begun = time.monotonic()
        with self._tracer.span(name):
            yield
        took_s = time.monotonic() - begun
        {"fetch": self._metrics.fetch, "decode": self._metrics.decode}[name].observe(took_s)
        timings_ms[name] = 1000 * took_s

    @contextmanager
    def reuse(self) -> Iterator[None]:
        """Measure that a verdict is stored which the same bytes got before."""
        with self._tracer.span("persist"):
            yield
        self._metrics.reused.inc()

    def add_batch(self, request: LeasedRequest, verdict: Verdict) -> None:
        """Add what the device thread did; it only measures, and has no time for more."""
        batched = request.submitted_at + verdict.timings_ms["batch_wait"] / 1000
        forwarded = batched + verdict.timings_ms["forward"] / 1000
        self._tracer.record("batch", begun_s=request.submitted_at, ended_s=batched)
        self._tracer.record("forward", begun_s=batched, ended_s=forwarded)
        self._tracer.record("persist", begun_s=forwarded, ended_s=time.monotonic())

    def end(self, verdict: Verdict, *, begun: float) -> None:
        """Count and log a stored verdict; the check began at `begun`, by `time.monotonic`."""
        self._tracer.note(model_version=verdict.model_version)
        self._metrics.verdicts.labels(verdict.label, verdict.model_version, verdict.role).inc()
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
            total_ms=round(1000 * (time.monotonic() - begun), 1),
        )

    def end_without_verdict(self, error: PermanentError) -> None:
        """Note why the image has no verdict."""
        self._tracer.note(reason=error.reason)
