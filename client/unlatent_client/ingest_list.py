"""Submits uploads by the Redis list that the service's bridge reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from unlatent_client.uploads import upload_fields

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, Unpack

    from unlatent_client.uploads import UploadOptions


class IngestList:
    """The ingest list of one deployment; needs the extra `redis`. Threads may share it.

    `ingest_key` is the service's `UNLATENT_REDIS__KEY_PREFIX` and `…__INGEST_KEY`, joined.
    """

    def __init__(self, redis_url: str, ingest_key: str = "unlatent:ingest") -> None:
        try:
            from redis import Redis
        except ImportError as error:
            raise ImportError(
                "IngestList needs redis: pip install 'unlatent-client[redis]'"
            ) from error
        self._redis = Redis.from_url(
            redis_url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=25
        )
        self._key = ingest_key

    def submit(self, *, bucket: str, key: str, **options: Unpack[UploadOptions]) -> None:
        """Append one upload, after its object was stored.

        Nothing is returned, because nothing has read the entry yet: a bridge gives the upload its
        id, or refuses the entry. Appending an upload twice changes nothing.
        Raises `TypeError` and `ValueError` as `Client.submit`, and `redis.exceptions.RedisError`
        when Redis does not take the entry.
        """
        event = {"v": 1, **upload_fields(bucket, key, options)}
        self._redis.rpush(self._key, json.dumps(event))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
