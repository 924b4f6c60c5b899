"""What producers call: one row, one event, and the sweeper's promise when Redis is away."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from worker.client import Client
from worker.database.engine import LedgerUnavailable
from worker.ingest.bridge import Bridge
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ingest.events import EventError
from worker.ledger.postgres import PostgresLedger
from worker.queue.publisher import MemoryPublisher
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """A client of this test's own deployment."""
    with Client(
        settings.redis.url.get_secret_value(),
        settings.postgres.url.get_secret_value(),
        settings.redis.key_prefix,
    ) as client:
        yield client


def test_a_submitted_upload_is_one_row_and_one_message(
    client: Client, redis_client: Redis, engine: Engine, settings: Settings
) -> None:
    """The bridge publishes the row that the client wrote, and no twin of it."""
    ids = {
        client.submit(bucket="uploads", key="ä b.jpg", etag="e", priority=True) for _ in range(3)
    }
    ledger = PostgresLedger(engine)
    publisher = MemoryPublisher(ledger)
    bridge = Bridge(
        redis=redis_client,
        ledger=ledger,
        publisher=publisher,
        storage=MemoryStorage(["uploads"]),
        buckets=["uploads"],
        settings=settings.redis,
        storage_settings=settings.s3,
        metrics=BridgeMetrics(),
        name="b",
    )
    bridge.step()
    assert publisher.sent == list(ids)
    client.submit(bucket="uploads", key="ä b.jpg", etag="e")
    assert redis_client.llen(settings.redis.key_prefix + "ingest") == 0


def test_threads_share_a_client(client: Client, engine: Engine) -> None:
    """Eight threads that submit the same upload get the same id."""
    ids = []
    threads = [
        threading.Thread(
            target=lambda: ids.append(client.submit(bucket="uploads", key="a.jpg", etag="e"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM app.images")) == 1


@pytest.mark.parametrize(
    "upload",
    [
        {"key": "a.jpg"},
        {"key": "a.txt", "etag": "e"},
        {"key": "a\0.jpg", "etag": "e"},
        {"key": "x" * 2000, "etag": "e"},
        {"key": "a.jpg", "etag": "e", "sha256": "short"},
    ],
)
def test_a_refused_upload_says_so(client: Client, upload: dict[str, str]) -> None:
    """What the bridge would reject is an error in the producer's own process."""
    with pytest.raises(EventError):
        client.submit(bucket="uploads", **upload)  # type: ignore[arg-type]  # a test's keywords


def test_without_redis_the_row_is_kept(client: Client, stack: LocalStack, engine: Engine) -> None:
    """The upload is safe in the ledger; it waits for the sweeper."""
    stack.redis.stop()
    image_id = client.submit(bucket="uploads", key="a.jpg", etag="e")
    with engine.connect() as connection:
        row = connection.execute(text("SELECT id, state, published_at FROM app.images")).one()
    assert tuple(row) == (image_id, "pending", None)


def test_without_postgres_nothing_is_promised(client: Client, stack: LocalStack) -> None:
    """The producer hears that the upload was not taken."""
    stack.postgres.stop()
    with pytest.raises(LedgerUnavailable):
        client.submit(bucket="uploads", key="a.jpg", etag="e")
