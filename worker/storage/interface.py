"""The object-storage seam: the few calls that the service makes of S3.

`worker.storage.s3` is the real thing over boto3, `worker.storage.memory` its in-memory twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from detection.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
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


class ObjectTooLarge(PermanentError):
    """The object is larger than the limit on bytes."""

    reason: ClassVar[str] = "too_many_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    """What HEAD or a listing says of an object.

    `size` is None where storage does not say it. `etag` is as in `worker.storage.etags`: None where
    storage says nothing that tells this object from its successor.
    """

    bucket: str
    key: str
    size: int | None
    etag: str | None
    version_id: str | None = None
    content_type: str | None = None
    modified_at: datetime | None = None


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

    def delete(self, bucket: str, key: str) -> None:
        """Remove one object; removing what is not there is no error."""

    def list(self, bucket: str, *, prefix: str = "") -> Iterator[ObjectFacts]:
        """List the current objects of a bucket in key order."""


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
