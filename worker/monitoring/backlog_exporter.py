"""Prometheus gauges of the backlog: the one source for autoscaling and for alerts on it.

A list's length sees neither the messages that workers hold nor images whose message was lost; the
ledger sees both. Reading happens in a thread of its own and never in a scrape, so that a database
that is away slows no scrape down; the time of the last reading tells how old the numbers are.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

import structlog
from redis.exceptions import RedisError

from detection.errors import TransientError
from worker.queue.names import QUEUES

if TYPE_CHECKING:
    from types import TracebackType

    from redis import Redis

    from worker.ingest.bridge_metrics import BridgeMetrics
    from worker.ledger.interface import Ledger
    from worker.monitoring.database_gauges import DatabaseCollector

_log = structlog.get_logger(__name__)

EVERY_S = 10.0


class BacklogExporter:
    """A context manager: reads from entering it until leaving it."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        redis: Redis,
        key_prefix: str,
        metrics: BridgeMetrics,
        gauges: DatabaseCollector,
    ) -> None:
        self._ledger = ledger
        self._redis = redis
        self._key_prefix = key_prefix
        self._metrics = metrics
        self._gauges = gauges
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def read(self) -> None:
        """Read everything once; raises `TransientError` or `RedisError`."""
        backlog = self._ledger.backlog()
        self._metrics.pending.set(backlog.pending)
        self._metrics.leased.set(backlog.leased)
        self._metrics.oldest.set(backlog.oldest_pending_age_s)
        self._metrics.recent_deaths.set(backlog.recent_deaths)
        self._metrics.quarantine_paused.set(backlog.quarantine_paused)
        self._metrics.read_at.set_to_current_time()
        with self._redis.pipeline(transaction=False) as pipeline:
            for queue in QUEUES:
                pipeline.llen(self._key_prefix + queue)
            for queue, length in zip(QUEUES, pipeline.execute(), strict=True):
                self._metrics.queued.labels(queue).set(length)
        # Last, because autoscaling does not wait for it.
        self._gauges.read()

    def _run(self) -> None:
        while True:
            try:
                self.read()
            except (TransientError, RedisError) as error:
                _log.warning("backlog_unavailable", error=str(error))
            if self._stop.wait(EVERY_S):
                return
