"""The in-memory twin of object storage, for tests."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from worker.storage.interface import (
    AccessDenied,
    ObjectFacts,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
    check_address,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class _Stored:
    """One version; a delete marker has no body."""

    facts: ObjectFacts
    body: bytes | None


class MemoryStorage:
    """Buckets as dictionaries; those named in `versioned` keep every version.

    `denied` holds the keys, and `all_denied` says whether all keys, that this worker may not read.
    """

    def __init__(self, buckets: Sequence[str], *, versioned: Collection[str] = ()) -> None:
        #: The versions of each key, the oldest first.
        self._objects: dict[str, dict[str, list[_Stored]]] = {bucket: {} for bucket in buckets}
        self._versioned = frozenset(versioned)
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
            version_id=uuid4().hex if bucket in self._versioned else None,
            content_type=content_type,
            modified_at=datetime.now(UTC),
        )
        self._store(_Stored(facts, body))
        return facts

    def delete(
        self, bucket: str, key: str, *, version_id: str | None = None, etag: str | None = None
    ) -> None:
        """Remove one object or version, or hide it with a delete marker."""
        check_address(bucket, key, allowed=self._objects)
        with self._lock:
            stored = self._objects[bucket].get(key)
            if stored is None:
                return
            wanted = [one for one in stored if version_id in (None, one.facts.version_id)][-1:]
            if etag is not None and any(one.facts.etag != etag for one in wanted):
                raise ObjectReplaced
            if version_id is not None or bucket not in self._versioned:
                self._objects[bucket][key] = [one for one in stored if one not in wanted]
                return
        marker = ObjectFacts(bucket=bucket, key=key, size=0, etag="", version_id=uuid4().hex)
        self._store(_Stored(marker, None))

    def list(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List the current objects in key order; like S3, without content types and versions."""
        for facts in self.versions(bucket, prefix=prefix):
            if facts.latest:
                yield replace(facts, version_id=None)

    def versions(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List every version in key order, the newest of a key first."""
        check_address(bucket, prefix, allowed=self._objects)
        with self._lock:
            keys = [key for key in self._objects[bucket] if key.startswith(prefix)]
        for key in sorted(keys, key=str.encode):
            yield from self.versions_of(bucket, key)

    def versions_of(self, bucket: str, key: str) -> Sequence[ObjectFacts]:
        """Return every version of one object, the newest first."""
        check_address(bucket, key, allowed=self._objects)
        with self._lock:
            stored = self._objects[bucket].get(key, [])
            return [
                replace(one.facts, content_type=None, latest=one is stored[-1])
                for one in reversed(stored)
                if one.body is not None
            ]

    def _store(self, new: _Stored) -> None:
        with self._lock:
            objects = self._objects[new.facts.bucket]
            kept = objects.get(new.facts.key, []) if new.facts.version_id else []
            objects[new.facts.key] = [*kept, new]

    def _find(self, bucket: str, key: str, version_id: str | None) -> tuple[ObjectFacts, bytes]:
        check_address(bucket, key, allowed=self._objects)
        if self.all_denied or key in self.denied:
            raise AccessDenied
        with self._lock:
            stored = self._objects[bucket].get(key, [])
        # Without an id it is the newest, which may be a delete marker.
        for one in reversed(stored if version_id else stored[-1:]):
            if one.body is not None and version_id in (None, one.facts.version_id):
                return one.facts, one.body
        raise ObjectMissing
