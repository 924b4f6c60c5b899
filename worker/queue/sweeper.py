"""The sweeper: publishes again what waits too long for its message.

Redis may lose a message and a worker may give up on one; the ledger knows what is still pending. A
row is swept only when its last message is older than twice the visibility timeout and the broker
holds no message for it, neither waiting nor with a worker: however long workers stall, sweeping
adds no second message to a first. A long queue is not read; it is swept when it has become short.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from worker.ledger.interface import Ledger
    from worker.queue.broker_state import RedisBrokerState
    from worker.queue.publisher import Publisher
    from worker.settings import Queue
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps once a tick."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        publisher: Publisher,
        messages: RedisBrokerState,
        settings: Queue,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._messages = messages
        self._settings = settings
        self._metrics = metrics

    def tick(self) -> int:
        """Sweep once; return how many messages were sent."""
        self._metrics.sweeps.inc()
        waiting = self._messages.waiting()
        if waiting >= self._settings.sweep_when_shorter_than:
            _log.info("sweep_skipped", waiting=waiting)
            return 0
        # Before the ledger is asked: a message that ends in between leaves no stale row.
        known = self._messages.images()
        stale = self._ledger.stale(
            published_before=timedelta(seconds=2 * self._settings.visibility_timeout_s),
            limit=self._settings.sweep_limit + len(known),
        )
        lost = [row for row in stale if row.image_id not in known][: self._settings.sweep_limit]
        if not lost:
            return 0
        self._publisher.publish(lost)
        self._metrics.swept.inc(len(lost))
        _log.warning("images_republished", images=len(lost), waiting=waiting)
        return len(lost)
