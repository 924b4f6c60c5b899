"""What the bridge refuses: counted by reason, its beginning kept with the error, the newest first.

The list is bounded in number and in the size of its notes; metrics and logs know of the rest.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import OutOfMemoryError

from worker.storage.interface import StorageUnreadable

if TYPE_CHECKING:
    from typing import Any

    from redis import Redis

    from detection.errors import PermanentError
    from worker import settings
    from worker.ingest.bridge_metrics import BridgeMetrics

_log = structlog.get_logger(__name__)


def rejected_key(settings: settings.Redis) -> str:
    """Return the key of the list."""
    return f"{settings.key_prefix}{settings.ingest_key}:rejected"


def read_rejected(redis: Redis, settings: settings.Redis, *, limit: int) -> list[dict[str, Any]]:
    """Return the newest notes: `at` (ISO 8601), `reason`, `error` and the entry's beginning."""
    return [json.loads(note) for note in redis.lrange(rejected_key(settings), 0, limit - 1)]


class RejectedEntries:
    """The list of what was refused, at `key`: `longest` notes with `kept_bytes` of each entry."""

    def __init__(
        self, redis: Redis, key: str, *, longest: int, kept_bytes: int, metrics: BridgeMetrics
    ) -> None:
        self._redis = redis
        self._key = key
        self._longest = longest
        self._kept_bytes = kept_bytes
        self._metrics = metrics
        # A counter that begins with its first event would hide that one from every alert.
        metrics.rejected.labels(StorageUnreadable.reason)

    def add(self, entry: bytes, error: PermanentError) -> None:
        """Count a refused entry, or a refused record of one, and keep the beginning of it."""
        self._metrics.rejected.labels(error.reason).inc()
        _log.warning("entry_rejected", reason=error.reason, error=str(error))
        note = {
            "at": datetime.now(UTC).isoformat(),
            "reason": error.reason,
            "error": str(error)[: self._kept_bytes],
            "entry": entry[: self._kept_bytes].decode(errors="backslashreplace"),
        }
        # A full Redis must not stop the bridge; the counter and the log still know.
        with suppress(OutOfMemoryError), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lpush(self._key, json.dumps(note))
            pipeline.ltrim(self._key, 0, self._longest - 1)
            pipeline.execute()
