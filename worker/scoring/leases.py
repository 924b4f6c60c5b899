"""The leases of one worker: taken before an image is fetched, closed with every outcome.

While the ledger is away, the calling thread waits in place, both for a lease and to close one: what
the threads hold then is all that the worker takes from the queue, and an outage never looks like a
death.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from worker.backoff import backoff_s
from worker.database.engine import LedgerUnavailable
from worker.ledger.coalescing import MAX_EVERY_S, Coalescer
from worker.ledger.interface import (
    AlreadyDone,
    HeldElsewhere,
    Lease,
    LeaseOutcome,
    Purpose,
    State,
    UnknownImage,
)
from worker.scoring.storage_budget import counts
from worker.storage.interface import ObjectReplaced, StorageForbidden

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from detection.errors import PermanentError
    from worker.ledger.interface import Ledger
    from worker.settings import Settings
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 5.0
#: How long a thread waits for a ledger that is away before its message goes back to the queue.
_LEASE_PATIENCE_S = 60.0


class Leases:
    """Takes and closes leases for many threads at once; counts and logs what becomes of each."""

    def __init__(
        self, ledger: Ledger, *, worker: str, settings: Settings, metrics: Metrics
    ) -> None:
        self._ledger = ledger
        self._worker = worker
        self._duration = timedelta(seconds=settings.scoring.lease_s)
        # As long as the message is ours; the ledger takes back a death when the lease closes late.
        self._close_patience_s = settings.queue.visibility_timeout_s
        self._metrics = metrics
        self._stopping = threading.Event()
        self._together = Coalescer(
            partial(ledger.lease_together, worker=worker, duration=self._duration),
            every_s=min(settings.scoring.max_wait_s, MAX_EVERY_S),
        )

    def stop(self) -> None:
        """Stop waiting for a ledger that is away."""
        self._stopping.set()

    def take(self, image_id: UUID, *, model_version: str | None = None) -> Lease | None:
        """Lease a pending image, or with a `model_version` a scored one for that model's verdict.

        Returns None when there is nothing to do: the image is unknown, has ended, or is leased to
        another thread. Raises `LedgerUnavailable` when the ledger stays away.
        """
        if model_version is None and (plain := self._take_plain(image_id)) is not None:
            self._metrics.messages.labels("leased").inc()
            return plain
        ask = partial(self._ledger.lease, image_id)
        if model_version is not None:
            ask = partial(self._ledger.lease_for_rescore, image_id, model_version=model_version)
        try:
            answer = self._patiently(
                partial(ask, worker=self._worker, duration=self._duration),
                patience_s=_LEASE_PATIENCE_S,
            )
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

    def _take_plain(self, image_id: UUID) -> Lease | None:
        """Lease a plain image with those of other threads; None for one to ask for alone."""
        try:
            return self._together.ask(image_id)
        except LedgerUnavailable:
            return None

    def take_for_shadow(self, image_id: UUID, *, model_version: str) -> Lease | None:
        """Lease a scored image for a challenger, at once or not at all."""
        lease = self._ledger.lease_for_rescore(
            image_id,
            model_version=model_version,
            worker=self._worker,
            duration=self._duration,
            purpose=Purpose.SHADOW,
        )
        return lease if isinstance(lease, Lease) else None

    def end(self, lease: Lease, error: PermanentError) -> None:
        """Close a lease whose image failed for good."""
        state = State.SUPERSEDED if isinstance(error, ObjectReplaced) else State.FAILED
        self._close(
            partial(self._ledger.end, lease, state=state, reason=error.reason, detail=str(error))
        )
        self._metrics.failures.labels(error.reason).inc()
        _log.info("image_ended", state=state.value, reason=error.reason, detail=str(error))

    def give_back(self, lease: Lease, error: Exception) -> None:
        """Close a lease whose image is worth another try; a failure of storage counts as a try."""
        outcome = LeaseOutcome.UNREADABLE if counts(error) else LeaseOutcome.RETRY
        if isinstance(error, StorageForbidden):
            outcome = LeaseOutcome.RELEASED
        detail = f"{type(error).__name__}: {error}"
        self.release(lease, outcome=outcome, detail=detail)
        self._metrics.retries.labels(type(error).__name__).inc()
        _log.warning("lease_released", outcome=outcome.value, error=detail)

    def release(
        self, lease: Lease, *, detail: str, outcome: LeaseOutcome = LeaseOutcome.RELEASED
    ) -> None:
        """Close a lease without an end of its image; `detail` says why, for a person."""
        self._close(partial(self._ledger.release, lease, outcome=outcome, detail=detail))

    def _close(self, close: Callable[[], None]) -> None:
        self._patiently(close, patience_s=self._close_patience_s)

    def _patiently(self, call: Callable[[], _T], *, patience_s: float) -> _T:
        deadline = time.monotonic() + patience_s
        failures = 0
        while True:
            try:
                return call()
            except LedgerUnavailable as error:
                delay_s = backoff_s(failures, first_s=_FIRST_DELAY_S, longest_s=_MAX_DELAY_S)
                if self._stopping.is_set() or time.monotonic() + delay_s > deadline:
                    raise
                _log.warning("ledger_unavailable", error=str(error), wait_s=delay_s)
                self._stopping.wait(delay_s)
                failures += 1
