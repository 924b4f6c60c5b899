"""Data sets in object storage, and the originals that they are made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.errors import PermanentError
from training.data.originals import Unreadable, read_original
from worker.storage.interface import ObjectMissing

if TYPE_CHECKING:
    from training.data.originals import Original
    from worker.retraining.snapshots import StoredItem
    from worker.storage.interface import Storage

#: Shards are written whole: 32 pairs of large photographs stay well below this.
MAX_BLOB_BYTES = 4 * 2**30


class BucketStore:
    """A `training.data.shards.Store` under one prefix of a bucket."""

    def __init__(self, storage: Storage, bucket: str, prefix: str) -> None:
        self._storage, self._bucket, self._prefix = storage, bucket, prefix

    def read(self, name: str) -> bytes | None:
        """Return a blob, or None when there is none of that name."""
        try:
            return self._storage.fetch(
                self._bucket, f"{self._prefix}{name}", max_bytes=MAX_BLOB_BYTES
            )
        except ObjectMissing:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Keep a blob under a name; object storage shows it whole or not at all."""
        self._storage.put(
            self._bucket,
            f"{self._prefix}{name}",
            data,
            content_type="application/octet-stream",
        )

    def delete(self, name: str) -> None:
        """Remove a blob; no error when there is none."""
        self._storage.delete(self._bucket, f"{self._prefix}{name}")


@dataclass(frozen=True, slots=True)
class StoredOriginal:
    """An image of a snapshot, fetched when it is read."""

    item: StoredItem
    storage: Storage
    max_bytes: int

    @property
    def key(self) -> str:
        """The image's id."""
        return str(self.item.image_id)

    def read(self) -> Original:
        """Fetch and decode; raises `Unreadable` when the bytes that were scored are not there.

        Bytes of the very hash that the ledger has went through the decoding processes before.
        """
        item = self.item
        try:
            data = self.storage.fetch(
                item.bucket,
                item.key,
                version_id=item.version_id,
                etag=item.etag,
                max_bytes=self.max_bytes,
            )
        except PermanentError as error:
            raise Unreadable(f"{self.key} cannot be fetched: {error}") from error
        if hashlib.sha256(data).hexdigest() != item.sha256:
            raise Unreadable(f"{self.key} is not what was scored: its sha256 is another")
        return read_original(
            data,
            key=self.key,
            group=item.group,
            source=item.source,
            label=item.label,
            split=item.split,
            weight=item.weight,
            audited=item.audited,
        )
