"""The sweeper, on the in-memory ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from worker.ledger.interface import Upload
from worker.ledger.memory import MemoryLedger
from worker.queue.publisher import MemoryPublisher
from worker.queue.sweeper import Sweeper
from worker.settings import Queue
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from uuid import UUID


class Broker:
    """Counts messages and names the images that have one."""

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting
        self.held: frozenset[UUID] = frozenset()

    def waiting(self) -> int:
        """Return how many messages wait."""
        return self._waiting

    def images(self) -> frozenset[UUID]:
        """Return the images with a message."""
        return self.held


class Scene:
    """Five uploads whose messages were published 601 s ago."""

    def __init__(self, *, waiting: int = 0) -> None:
        self.broker = Broker(waiting)
        self.ledger = MemoryLedger()
        self.publisher = MemoryPublisher(self.ledger)
        self.sweeper = Sweeper(
            ledger=self.ledger,
            publisher=self.publisher,
            messages=self.broker,
            settings=Queue(visibility_timeout_s=300, sweep_limit=3, sweep_when_shorter_than=100),
            metrics=Metrics(),
        )
        uploads = [Upload(bucket="b", key=f"{index}", etag="e") for index in range(5)]
        self.ids = [registration.image_id for registration in self.ledger.register(uploads)]
        self.published(601)

    def published(self, age_s: float) -> None:
        """Say when the last messages were published."""
        for image in self.ledger.images.values():
            image.published_at = datetime.now(UTC) - timedelta(seconds=age_s)


def test_what_waits_too_long_is_sent_again_within_the_cap() -> None:
    """Each tick sends at most its limit, and never the same image twice in a row."""
    scene = Scene()
    assert [scene.sweeper.tick() for _ in range(3)] == [3, 2, 0]
    assert sorted(scene.publisher.sent) == sorted(scene.ids)


def test_a_message_that_may_still_come_is_not_doubled() -> None:
    """Twice the visibility timeout must have passed since the last message."""
    scene = Scene()
    scene.published(599)
    assert scene.sweeper.tick() == 0


@pytest.mark.parametrize(("waiting", "sent"), [(99, 3), (100, 0)])
def test_a_long_queue_is_not_made_longer(waiting: int, sent: int) -> None:
    """In an overload the messages are there and only wait."""
    assert Scene(waiting=waiting).sweeper.tick() == sent


def test_an_image_under_way_is_left_alone() -> None:
    """A live lease is somebody at work."""
    scene = Scene()
    for image_id in scene.ids[:4]:
        scene.ledger.lease(image_id, worker="w", duration=timedelta(minutes=1))
    assert scene.sweeper.tick() == 1
    assert scene.publisher.sent == scene.ids[4:]


def test_an_image_whose_message_is_still_there_gets_no_second_one() -> None:
    """However old: it waits its turn, or a stalled worker has it; the lost ones behind it count."""
    scene = Scene()
    scene.broker.held = frozenset(scene.ids[:4])
    assert scene.sweeper.tick() == 1
    assert scene.publisher.sent == scene.ids[4:]
