"""For Python producers: submit uploads; the check is guaranteed once `submit` returns.

Needs the extra `client` only (SQLAlchemy, psycopg, redis):

    client = Client(redis_url="redis://…", postgres_url="postgresql+psycopg://…")
    image_id = client.submit(bucket="uploads", key="cat.jpg", etag="…")
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import redis
from redis.exceptions import RedisError

from worker.database.engine import LedgerUnavailable, SchemaOutdated, connect
from worker.ingest.events import EventError, EventFieldInvalid, Ignored, own_event, parse
from worker.ledger.interface import Removal, Upload
from worker.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self
    from uuid import UUID

__all__ = ["Client", "EventError", "LedgerUnavailable", "SchemaOutdated", "submit"]


class Client:
    """Connections to one deployment; build it once, after a fork, and share it between threads."""

    def __init__(
        self,
        redis_url: str,
        postgres_url: str,
        key_prefix: str = "unlatent:",
        *,
        ingest_key: str = "ingest",
    ) -> None:
        self._engine = connect(postgres_url, application_name="unlatent-client")
        self._ledger = PostgresLedger(self._engine)
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=25
        )
        self._ingest = key_prefix + ingest_key

    def submit(
        self,
        *,
        bucket: str,
        key: str,
        etag: str | None = None,
        version_id: str | None = None,
        source: str = "default",
        uploader: str | None = None,
        priority: bool = False,
        sha256: str | None = None,
        traceparent: str | None = None,
    ) -> UUID:
        """Write the upload's row and nudge the bridge; return the image's id.

        From the return on, the upload ends in a terminal state: when Redis is away, the sweeper
        starts the check a little later. Submitting the same object again returns the same id.
        `traceparent` (W3C) lets the upload's trace go on to its verdict.
        Raises `EventError` for an upload that the service would refuse, and `LedgerUnavailable`
        when Postgres is away (nothing is written then).
        """
        if not (etag or version_id):
            raise EventFieldInvalid("an upload needs its etag or its version_id")
        event = own_event(
            Upload(
                bucket=bucket,
                key=key,
                etag=etag,
                version_id=version_id,
                source=source,
                uploader=uploader,
                priority=priority,
                sha256=sha256,
                traceparent=traceparent,
            )
        )
        # The row must be the one that the bridge would write for the event.
        (upload,) = (e for e in parse(event, buckets=(bucket,)) if not isinstance(e, Removal))
        if isinstance(upload, Ignored):
            raise EventFieldInvalid(f"{key!r} is not the name of an image ({upload.reason})")
        (registration,) = self._ledger.register([upload])
        if registration.unpublished:
            # Without Redis the row is committed all the same: the sweeper publishes it.
            with suppress(RedisError):
                self._redis.rpush(self._ingest, event)
        return registration.image_id

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def submit(
    redis_url: str,
    postgres_url: str,
    *,
    bucket: str,
    key: str,
    etag: str | None = None,
    version_id: str | None = None,
    source: str = "default",
) -> UUID:
    """Submit one upload over connections of its own; a producer of many keeps a `Client`."""
    with Client(redis_url, postgres_url) as client:
        return client.submit(
            bucket=bucket, key=key, etag=etag, version_id=version_id, source=source
        )
