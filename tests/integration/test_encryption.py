"""Redis and Postgres over TLS: certificates are verified wherever the service connects.

No wheel carries a Redis that speaks TLS; a door of the test's own speaks it before the real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.processes import WorkerProcess
from tests.site import Site, png
from tests.tls import Authority, Door
from tests.waiting import eventually
from worker.celery_app import build_app
from worker.events import own_event
from worker.ledger import Upload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority that servers of this test are certified by."""
    return Authority(tmp_path / "ours")


@pytest.fixture
def door(stack: LocalStack, authority: Authority) -> Iterator[Door]:
    """A TLS door before this run's Redis."""
    with Door(stack.redis.port, *authority.issue()) as door:
        yield door


def behind(door: Door, settings: Settings, query: str) -> Settings:
    """Return settings that reach Redis through the door."""
    plain = settings.redis.url.get_secret_value()
    password = plain.partition("@")[0].partition("://")[2]
    url = f"rediss://{password}@127.0.0.1:{door.port}/0{query}"
    redis = settings.redis.model_dump() | {"url": url}
    return settings.model_validate(settings.model_dump() | {"redis": redis})


def test_images_are_checked_over_an_encrypted_redis(
    door: Door, authority: Authority, settings: Settings, engine: Engine
) -> None:
    """A bridge and a worker that trust the authority take an event to its verdict."""
    encrypted = behind(door, settings, f"?ssl_ca_certs={authority.file}")
    site = Site(encrypted, engine)
    facts = site.storage.put(site.bucket, "a.png", png(1), content_type="image/png")
    with (
        WorkerProcess(encrypted, module="worker", arguments=["bridge"]),
        WorkerProcess(encrypted) as worker,
        Redis.from_url(encrypted.redis.url.get_secret_value()) as redis,
    ):
        redis.rpush(
            f"{encrypted.redis.key_prefix}{encrypted.redis.ingest_key}",
            own_event(Upload(bucket=site.bucket, key="a.png", etag=facts.etag)),
        )
        eventually(lambda: bool(worker.events("verdict")), timeout_s=120, what="a verdict")
    assert door.entered >= 3


@pytest.mark.parametrize("trusted", ["nobody", "a stranger"])
def test_a_redis_without_a_trusted_certificate_is_refused(
    trusted: str, door: Door, settings: Settings, tmp_path: Path
) -> None:
    """Neither Celery's connections nor ours say the password to whoever answers."""
    stranger = Authority(tmp_path / "stranger")
    query = "" if trusted == "nobody" else f"?ssl_ca_certs={stranger.file}"
    encrypted = behind(door, settings, query)
    refused = "certificate verify failed"
    with (
        Redis.from_url(encrypted.redis.url.get_secret_value()) as redis,
        pytest.raises(RedisConnectionError, match=refused),
    ):
        redis.ping()
    with (
        build_app(encrypted).connection_for_write() as connection,
        pytest.raises(OperationalError, match=refused),
    ):
        connection.ensure_connection(max_retries=1, interval_start=0)
    assert door.entered == 0
