"""Reads from the broker which images have a message, queued or unacknowledged."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from worker.queue import names as queues
from worker.queue.publisher import QueueUnavailable

if TYPE_CHECKING:
    from worker.settings import Redis as RedisSettings


class RedisBrokerState:
    """The messages of pending images, as the Redis transport of Celery keeps them.

    Both methods raise `QueueUnavailable`.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._queues = [settings.key_prefix + queue for queue in queues.PENDING_QUEUES]
        self._unacked = f"{settings.key_prefix}unacked"
        self._client = Redis.from_url(
            settings.url.get_secret_value(), socket_timeout=5, socket_connect_timeout=5
        )

    def waiting(self) -> int:
        """Return how many messages wait for a worker."""
        try:
            return sum(self._client.llen(queue) for queue in self._queues)
        except RedisError as error:
            raise _unavailable(error) from error

    def images(self) -> frozenset[UUID]:
        """Return the images with a message that waits or that a worker has not acknowledged."""
        try:
            # In one transaction: a message on its way to a worker, or back, is seen in one place.
            with self._client.pipeline() as pipeline:
                for queue in self._queues:
                    pipeline.lrange(queue, 0, -1)
                pipeline.hvals(self._unacked)
                *waiting, unacked = pipeline.execute()
        except RedisError as error:
            raise _unavailable(error) from error
        found = {_image(raw) for queue in waiting for raw in queue}
        found |= {_image(raw, handed_out=True) for raw in unacked}
        return frozenset(image_id for image_id in found if image_id is not None)


def _unavailable(error: RedisError) -> QueueUnavailable:
    return QueueUnavailable(f"The messages in the queues are not known: {error}")


def _image(raw: bytes, *, handed_out: bool = False) -> UUID | None:
    """Return the image that a message wants checked; None for any other entry."""
    try:
        # The transport keeps [message, exchange, routing key] of what it handed out.
        message: Any = json.loads(raw)[0] if handed_out else json.loads(raw)
        if message["headers"]["task"] != queues.SCORE_TASK:
            return None
        encoded = message["properties"].get("body_encoding") == "base64"
        body = b64decode(message["body"]) if encoded else message["body"]
        return UUID(json.loads(body)[0][0])
    except (ValueError, TypeError, AttributeError, LookupError):
        return None  # the broker may be written by others; what is no check delays no image
