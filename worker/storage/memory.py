"""The in-memory twin of object storage, for tests."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from worker.storage.interface import (
    AccessDenied,
    ObjectFacts,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
    check_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class MemoryStorage:
    """Buckets without versions, as dictionaries.

    `denied` holds the keys, and `all_denied` says whether all keys, that this worker may not read.
    """

    def __init__(self, buckets: Sequence[str]) -> None:
        self._objects: dict[str, dict[str, tuple[ObjectFacts, bytes]]] = {
            bucket: {} for bucket in buckets
        }
        self._lock = threading.Lock()
        self.denied: set[str] = set()
        self.all_denied = False

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectFacts:
        """Ask for an object's facts."""
        return self._find(bucket, key, version_id)[0]

    def fetch(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        etag: str | None = None,
        max_bytes: int,
    ) -> bytes:
        """Return one object's bytes."""
        facts, body = self._find(bucket, key, version_id)
        if etag is not None and etag != facts.etag:
            raise ObjectReplaced
        if len(body) > max_bytes:
            raise ObjectTooLarge
        return body

    def put(self, bucket: str, key: str, body: bytes, *, content_type: str) -> ObjectFacts:
        """Store one object."""
        check_address(bucket, key, allowed=self._objects)
        facts = ObjectFacts(
            bucket=bucket,
            key=key,
            size=len(body),
            etag=hashlib.md5(body, usedforsecurity=False).hexdigest(),
            content_type=content_type,
            modified_at=datetime.now(UTC),
        )
        with self._lock:
            self._objects[bucket][key] = (facts, body)
        return facts

    def delete(self, bucket: str, key: str) -> None:
        """Remove one object."""
        check_address(bucket, key, allowed=self._objects)
        with self._lock:
            self._objects[bucket].pop(key, None)

    def list(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List the current objects in key order; like S3, without content types."""
        check_address(bucket, prefix, allowed=self._objects)
        with self._lock:
            found = [facts for facts, _ in self._objects[bucket].values()]
        for facts in sorted(found, key=lambda facts: facts.key.encode()):
            if facts.key.startswith(prefix):
                yield ObjectFacts(
                    bucket=bucket,
                    key=facts.key,
                    size=facts.size,
                    etag=facts.etag,
                    modified_at=facts.modified_at,
                )

    def _find(self, bucket: str, key: str, version_id: str | None) -> tuple[ObjectFacts, bytes]:
        check_address(bucket, key, allowed=self._objects)
        if self.all_denied or key in self.denied:
            raise AccessDenied
        with self._lock:
            found = self._objects[bucket].get(key)
        if found is None or version_id is not None:
            raise ObjectMissing
        return found
