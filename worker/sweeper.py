"""The sweeper: sends again what waits too long for its message.

Redis may lose a message and a worker may give up on one; the ledger knows what is still pending. A
row is swept only when its last message is older than twice the visibility timeout, so that the
message is gone and not merely waiting its turn with another worker, and only while the queue is
short, because in a long queue the message is most likely still there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from redis import Redis
from redis.exceptions import RedisError

from worker import queues
from worker.publisher import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.ledger import Ledger
    from worker.metrics import Metrics
    from worker.publisher import Publisher
    from worker.settings import Queue
    from worker.settings import Redis as RedisSettings

_log = structlog.get_logger(__name__)


class QueueLength:
    """Counts the messages that wait in the queues of images."""

    def __init__(self, settings: RedisSettings) -> None:
        self._prefix = settings.key_prefix
        self._client = Redis.from_url(
            settings.url.get_secret_value(), socket_timeout=5, socket_connect_timeout=5
        )

    def __call__(self) -> int:
        """Return the count; raises `QueueUnavailable`."""
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for queue in queues.IMAGE_QUEUES:
                    pipeline.llen(self._prefix + queue)
                return sum(pipeline.execute())
        except RedisError as error:
            message = f"The length of the queues is not known: {error}"
            raise QueueUnavailable(message) from error


class Sweeper:
    """Sweeps once a tick; `queue_length` counts the messages that wait."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        publisher: Publisher,
        queue_length: Callable[[], int],
        settings: Queue,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._queue_length = queue_length
        self._settings = settings
        self._metrics = metrics

    def tick(self) -> int:
        """Sweep once; return how many messages were sent."""
        self._metrics.sweeps.inc()
        waiting = self._queue_length()
        if waiting >= self._settings.sweep_when_shorter_than:
            _log.info("sweep_skipped", waiting=waiting)
            return 0
        stale = self._ledger.stale(
            published_before=timedelta(seconds=2 * self._settings.visibility_timeout_s),
            limit=self._settings.sweep_limit,
        )
        if not stale:
            return 0
        self._publisher.publish(stale)
        self._metrics.swept.inc(len(stale))
        _log.warning("swept", images=len(stale), waiting=waiting)
        return len(stale)
