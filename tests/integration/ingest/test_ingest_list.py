"""An entry of the producers' wheel is the entry that the service itself would write."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

from unlatent_client import IngestList, UploadOptions
from worker.client import Client
from worker.ingest.events import OWN_EVENT_FIELDS, parse
from worker.ledger.interface import Upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from worker.ingest.events import Event
    from worker.localstack import LocalStack
    from worker.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "client.md").read_text(encoding="utf-8")


@pytest.fixture
def ingest_key(settings: Settings) -> str:
    """The key of this test's own ingest list."""
    return settings.redis.key_prefix + settings.redis.ingest_key


@pytest.fixture
def uploads(settings: Settings, ingest_key: str) -> Iterator[IngestList]:
    """A producer's end of the list."""
    with IngestList(settings.redis.url.get_secret_value(), ingest_key) as uploads:
        yield uploads


def take(redis_client: Redis, ingest_key: str) -> list[Event]:
    """Take the only entry of the list and parse it."""
    (entry,) = redis_client.lpop(ingest_key, 10)  # type: ignore[misc]  # not awaitable here
    return parse(entry, buckets=["uploads"])


def test_both_clients_announce_the_same_upload(
    uploads: IngestList, redis_client: Redis, ingest_key: str, settings: Settings
) -> None:
    """The bridge reads from the wheel's entry what it reads from that of `worker.client`."""
    given = {
        "bucket": "uploads",
        "key": "2026/ä b+c.jpg",
        "etag": "b1946ac92492d2347c6235b4d2611184",
        "version_id": "v1",
        "source": "web",
        "uploader": "user-81",
        "priority": True,
        "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    uploads.submit(**given)  # type: ignore[arg-type]  # a test's keywords
    ours = take(redis_client, ingest_key)
    with Client(
        settings.redis.url.get_secret_value(),
        settings.postgres.url.get_secret_value(),
        settings.redis.key_prefix,
    ) as client:
        client.submit(**given)  # type: ignore[arg-type]  # likewise
    assert ours == take(redis_client, ingest_key) == [Upload(**given)]  # type: ignore[arg-type]


def test_every_field_of_our_own_event_can_be_said(
    uploads: IngestList, redis_client: Redis, ingest_key: str
) -> None:
    """The wheel knows the fields that the bridge reads, and each arrives as it was given."""
    assert UploadOptions.__annotations__.keys() | {"v", "id", "bucket", "key"} == OWN_EVENT_FIELDS
    options: UploadOptions = {
        "version_id": "v1",
        "etag": "e",
        "sequencer": "0055AED6DCD90281E5",
        "size": 2**63 - 1,
        "content_type": "image/jpeg",
        "sha256": "ab" * 32,
        "source": "web",
        "uploader": "user-81",
        "priority": True,
        "uploaded_at": datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=1))),
        "traceparent": "00-1",
    }
    uploads.submit(bucket="uploads", key="a.jpg", **options)
    (upload,) = take(redis_client, ingest_key)
    wanted = {**options, "uploaded_at": datetime(2026, 1, 31, 11, tzinfo=UTC)}
    assert upload == Upload(bucket="uploads", key="a.jpg", **wanted)  # type: ignore[arg-type]


def test_the_least_upload_has_the_defaults_of_the_service(
    uploads: IngestList, redis_client: Redis, ingest_key: str
) -> None:
    """Bucket and key suffice; what is not given is not said."""
    uploads.submit(bucket="uploads", key="a.jpg", etag=None)
    assert take(redis_client, ingest_key) == [
        Upload(bucket="uploads", key="a.jpg", source="default")
    ]


def test_the_example_of_the_page_announces_its_upload(
    redis_client: Redis, ingest_key: str, settings: Settings
) -> None:
    """The code of docs/client.md runs as it stands, at this test's own address and key."""
    (example,) = re.findall(
        r"```python\n(from unlatent_client import IngestList.*?)```", PAGE, re.DOTALL
    )
    url = settings.redis.url.get_secret_value()
    code = example.replace("rediss://:…@redis.example:6379/0", url)
    exec(compile(code.replace("unlatent:ingest", ingest_key), "example", "exec"), {})  # noqa: S102 - our own page
    assert take(redis_client, ingest_key) == [
        Upload(bucket="uploads", key="cat.jpg", etag="0a1b", source="web")
    ]


def test_an_entry_that_cannot_be_is_not_written(
    uploads: IngestList, redis_client: Redis, ingest_key: str
) -> None:
    """Empty and too long keys and misspelt fields are errors of the producer's call."""
    for upload in ({"key": ""}, {"key": "a" * 1025}, {"key": "a.jpg", "etga": "e"}):
        with pytest.raises((ValueError, TypeError)):
            uploads.submit(bucket="uploads", **upload)  # type: ignore[typeddict-item]
    assert redis_client.llen(ingest_key) == 0


def test_without_redis_the_producer_is_told(uploads: IngestList, stack: LocalStack) -> None:
    """An entry that was not taken is an error, because nothing else knows of the upload."""
    stack.redis.stop()
    with pytest.raises(RedisError):
        uploads.submit(bucket="uploads", key="a.jpg")
