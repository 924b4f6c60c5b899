"""The object-storage seam: the few calls that the service makes of S3.

`worker.storage.s3` is the real thing over boto3, `worker.storage.memory` its in-memory twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from detection.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from datetime import datetime


class StorageUnavailable(TransientError):
    """Object storage did not answer or asked to slow down."""


class AnswerUnusable(StorageUnavailable):
    """Object storage answered, but neither with the object nor with what is wrong with it."""


class StorageForbidden(TransientError):
    """Object storage gives this worker nothing of what it asks for."""


class StorageUnreadable(PermanentError):
    """Object storage did not give the object within its budget of tries and time."""

    reason: ClassVar[str] = "storage_unreadable"


class ObjectMissing(PermanentError):
    """The object is not in the bucket."""

    reason: ClassVar[str] = "object_missing"


class AccessDenied(PermanentError):
    """Object storage denies this worker the object."""

    reason: ClassVar[str] = "access_denied"


class ObjectArchived(PermanentError):
    """The object lies in an archive; it has to be restored before it can be read."""

    reason: ClassVar[str] = "object_archived"


class ObjectWithheld(PermanentError):
    """Object storage withholds the object for legal reasons."""

    reason: ClassVar[str] = "object_withheld"


class ContentEncodingUnknown(PermanentError):
    """The object is stored in a content encoding that this service does not undo."""

    reason: ClassVar[str] = "unknown_content_encoding"


class AddressRefused(PermanentError):
    """The bucket is not among the configured ones, or the key leads out of it."""

    reason: ClassVar[str] = "address_not_allowed"


class ObjectReplaced(PermanentError):
    """The object changed since the event; the row ends as superseded."""

    reason: ClassVar[str] = "object_replaced"


class ObjectKept(PermanentError):
    """The object is still readable after it was removed: a lock or the store's rules keep it."""

    reason: ClassVar[str] = "object_kept"


class ObjectTooLarge(PermanentError):
    """The object is larger than the limit on bytes."""

    reason: ClassVar[str] = "too_many_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    """What HEAD or a listing says of an object.

    `size` is None where storage does not say it. `etag` is as in `worker.storage.etags`: None where
    storage says nothing that tells this object from its successor. `latest` is False for a version
    that another one, or a delete marker, hides.
    """

    bucket: str
    key: str
    size: int | None
    etag: str | None
    version_id: str | None = None
    content_type: str | None = None
    modified_at: datetime | None = None
    latest: bool = True


#: S3's name for the version of an object that was stored while its bucket had no versions.
NULL_VERSION = "null"


class Storage(Protocol):
    """Raises the errors above, and nothing of boto3's."""

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectFacts:
        """Ask for an object's facts."""

    def fetch(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        etag: str | None = None,
        max_bytes: int,
    ) -> bytes:
        """Download one object, with If-Match when `etag` is given, at most `max_bytes` of it."""

    def put(self, bucket: str, key: str, body: bytes, *, content_type: str) -> ObjectFacts:
        """Store one object."""

    def delete(
        self, bucket: str, key: str, *, version_id: str | None = None, etag: str | None = None
    ) -> None:
        """Remove one object, or one version of it; removing what is not there is no error.

        With `etag`, only while that is the object's: raises `ObjectReplaced` otherwise. Without
        `version_id`, a bucket with versions only hides the object.
        """

    def list(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List the current objects of a bucket in key order."""

    def versions(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List every version of every object in key order, the newest of a key first.

        In a bucket without versions that is the current objects, with `NULL_VERSION` or no version
        as the store has it. Delete markers are no objects.
        """

    def versions_of(self, bucket: str, key: str) -> Sequence[ObjectFacts]:
        """Return every version of one object, the newest first."""


def purge(storage: Storage, bucket: str, key: str) -> None:
    """Remove every version of an object that is this service's own; raises `ObjectKept`."""
    _purge(storage, f"{bucket}/{key}", lambda: storage.versions_of(bucket, key))


def purge_folder(storage: Storage, bucket: str, folder: str) -> None:
    """Remove every version of every object of this service's below a folder, "a/b" for "a/b/…".

    Raises `ObjectKept`, and `ValueError` for the bucket itself.
    """
    if not folder.strip("/"):
        raise ValueError(f"{bucket!r} is a bucket and no folder in one")
    prefix = f"{folder}/"
    _purge(storage, f"{bucket}/{prefix}", lambda: storage.versions(bucket, prefix=prefix))


def _purge(storage: Storage, name: str, stored: Callable[[], Iterable[ObjectFacts]]) -> None:
    remove(storage, list(stored()))
    if any(True for _ in stored()):
        raise ObjectKept(f"{name} is still there after its removal")


def remove(storage: Storage, versions: Iterable[ObjectFacts]) -> None:
    """Remove versions of objects, each only while it is the one that was listed."""
    for found in versions:
        # What has a version id of its own never changes; the unnamed one may be overwritten.
        unnamed = found.version_id in (None, NULL_VERSION) and found.latest
        storage.delete(
            found.bucket,
            found.key,
            version_id=found.version_id,
            etag=found.etag if unnamed else None,
        )


def check_address(bucket: str, key: str, *, allowed: Collection[str]) -> None:
    """Raise `AddressRefused` for what an event may not make this service touch.

    S3 itself takes a key of ".." segments literally, but a proxy before it may resolve them into
    another bucket.
    """
    if bucket not in allowed or ".." in key.split("/"):
        message = f"s3://{bucket}/{key} is not in one of the buckets of UNLATENT_S3__BUCKETS."
        raise AddressRefused(message)


def parse_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an address of the form s3://bucket/key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
