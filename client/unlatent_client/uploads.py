"""The fields of an upload, which HTTP and the ingest list have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

#: S3's limit on the UTF-8 bytes of a key.
MAX_KEY_BYTES = 1024


class UploadOptions(TypedDict, total=False):
    """What may be said of an upload beside its bucket and key; docs/events.md has the bounds.

    `version_id` and `etag` say which object is meant, `source` and `uploader` whose it is.
    `sha256` (hexadecimal digits) and `size` (bytes) are checked against the stored object.
    `priority` puts the upload before others. `sequencer` is the order in which S3 stored the
    objects of one key, and `traceparent` the W3C trace that goes on to the verdict.
    """

    version_id: str | None
    etag: str | None
    sequencer: str | None
    size: int | None
    content_type: str | None
    sha256: str | None
    source: str | None
    uploader: str | None
    priority: bool
    uploaded_at: datetime | None
    traceparent: str | None


def upload_fields(bucket: str, key: str, options: UploadOptions) -> dict[str, Any]:
    """Return the fields that are set, as JSON has them.

    Raises `TypeError` for a name that is not a field and `ValueError` for an empty bucket or key
    and for a key that no store takes. The service checks the rest.
    """
    unknown = options.keys() - UploadOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"an upload has no {', '.join(sorted(unknown))}")
    if not bucket or not key:
        raise ValueError("an upload needs a bucket and a key")
    length = len(key.encode())
    if length > MAX_KEY_BYTES:
        raise ValueError(f"the key has {length} bytes; the limit is {MAX_KEY_BYTES}")
    fields = {"bucket": bucket, "key": key, **options}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if value is not None
    }
