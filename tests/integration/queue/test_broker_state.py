"""What is read of the broker, against the real thing and the messages that Celery writes."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.broker_state import RedisBrokerState
from worker.queue.publisher import QueueUnavailable

if TYPE_CHECKING:
    from redis import Redis

    from worker.localstack import LocalStack
    from worker.settings import Settings


def test_waiting_and_handed_out_messages_name_their_images(
    settings: Settings, redis_client: Redis
) -> None:
    """Every queue of pending images is read, and what a worker holds; nothing else counts."""
    app = build_app(settings)
    messages = RedisBrokerState(settings.redis)
    assert (messages.waiting(), messages.images()) == (0, frozenset())
    first, second, third, scored = (uuid4() for _ in range(4))
    for queue, image_id in (
        (queues.SCORE, first),
        (queues.SCORE, second),
        (queues.SCORE_PRIORITY, third),
    ):
        app.send_task(queues.SCORE_TASK, args=[str(image_id)], queue=queue)
    app.send_task(queues.RESCORE_TASK, args=[str(scored)])
    app.send_task(queues.SWEEP_TASK)
    redis_client.rpush(settings.redis.key_prefix + queues.SCORE, b"{", b"[]", b'{"headers": 3}')
    assert messages.waiting() == 6
    assert messages.images() == {first, second, third}
    with app.connection_for_read() as connection, connection.channel() as channel:
        for queue in (queues.SCORE_PRIORITY, queues.BACKFILL, queues.CONTROL):
            assert channel.basic_get(queue) is not None
        assert messages.waiting() == 5
        assert messages.images() == {first, second, third}
    app.close()


def test_a_broker_that_is_away_is_unavailable(settings: Settings, stack: LocalStack) -> None:
    """The sweeper's tick ends in an error that is tried again."""
    messages = RedisBrokerState(settings.redis)
    stack.redis.stop()
    with pytest.raises(QueueUnavailable):
        messages.waiting()
    with pytest.raises(QueueUnavailable):
        messages.images()
