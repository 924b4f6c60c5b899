"""Parses entries of the ingest list into uploads and removals; pure, safe on hostile input.

Three JSON shapes are read: our own (`{"v": 1, "bucket": …, "key": …}`), an S3 event
(`{"Records": […]}`, also its one-off test event), and MinIO's `access` format
(`[{"Event": […], "EventTime": …}]`). S3 records carry URL-encoded keys; our own shape does not.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote_plus

from detection.errors import PermanentError
from worker.ledger.interface import Removal, Upload
from worker.storage.etags import bare_etag

if TYPE_CHECKING:
    from collections.abc import Collection

#: S3 sends at most 64 KB an event; a producer's own event is far smaller.
MAX_ENTRY_BYTES = 256 * 2**10
MAX_RECORDS = 1000
#: The deepest shape that is read (outer list, event, list, record, s3, object, metadata) is 7 deep.
MAX_DEPTH = 16
#: S3's limit on the UTF-8 bytes of a key and of a version id; all that identifies an upload must
#: also fit one index entry of Postgres (2704 bytes).
MAX_KEY_BYTES = 1024
MAX_VERSION_BYTES = 1024
MAX_TEXT = 200
#: Postgres' bigint.
MAX_SIZE = 2**63 - 1

#: What people upload as pictures; intake decides by the bytes, this only spares it other files.
IMAGE_EXTENSIONS = frozenset(
    {
        "apng", "avif", "bmp", "dib", "gif", "heic", "heif", "hif", "jfif", "jpe", "jpeg", "jpg",
        "mpo", "png", "tif", "tiff", "webp",
    }
)  # fmt: skip
#: Content types that say nothing of the content.
VAGUE_CONTENT_TYPES = frozenset({"application/octet-stream", "binary/octet-stream"})

OWN_EVENT_FIELDS = frozenset(
    {
        "v", "id", "bucket", "key", "version_id", "etag", "sequencer", "size", "content_type",
        "sha256", "source", "uploader", "priority", "uploaded_at", "traceparent",
    }
)  # fmt: skip


class EventError(PermanentError):
    """An entry of the ingest list cannot be used."""

    reason: ClassVar[str] = "bad_event"


class EventTooLarge(EventError):
    """The entry is larger than any event."""

    reason: ClassVar[str] = "event_too_large"


class EventNotJson(EventError):
    """The entry is not JSON in UTF-8."""

    reason: ClassVar[str] = "not_json"


class EventTooDeep(EventError):
    """The entry is nested deeper than any event."""

    reason: ClassVar[str] = "event_too_deep"


class EventShapeUnknown(EventError):
    """The entry is JSON of no shape that is read."""

    reason: ClassVar[str] = "unknown_shape"


class EventVersionUnknown(EventError):
    """The entry has a major version that this code does not read."""

    reason: ClassVar[str] = "unknown_version"


class EventFieldInvalid(EventError):
    """A field of the entry is missing, of the wrong type, or out of bounds."""

    reason: ClassVar[str] = "invalid_field"


class BucketNotAllowed(EventError):
    """The entry names a bucket that the settings do not list."""

    reason: ClassVar[str] = "bucket_not_allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A valid record that asks for nothing; `reason` is a metric label."""

    reason: str


Event = Upload | Removal | Ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record that cannot be used, beside others that can."""

    error: EventError
    record: object


def parse(raw: bytes, *, buckets: Collection[str]) -> list[Event]:
    """Read one entry: one event for every record, in their order.

    Raises `EventError`, and nothing else, when any of its records cannot be used.
    """
    events: list[Event] = []
    for event in parse_records(raw, buckets=buckets):
        if isinstance(event, Refused):
            raise event.error
        events.append(event)
    return events


def parse_records(raw: bytes, *, buckets: Collection[str]) -> list[Event | Refused]:
    """Read one entry: an event or a refusal for every record, in their order.

    Raises `EventError`, and nothing else, when there are no records to be found.
    """
    if len(raw) > MAX_ENTRY_BYTES:
        raise EventTooLarge(f"an entry of more than {MAX_ENTRY_BYTES} bytes")
    return [_allowed(event, buckets) for event in _events(_load(raw))]


def _allowed(event: Event | Refused, buckets: Collection[str]) -> Event | Refused:
    if isinstance(event, (Ignored, Refused)) or event.bucket in buckets:
        return event
    error = BucketNotAllowed(f"bucket {event.bucket!r} is not in the setting s3.buckets")
    return Refused(error=error, record=asdict(event))


def _load(raw: bytes) -> object:
    try:
        value = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise EventTooDeep from error
    # ValueError: also bad UTF-8, numbers with too many digits, and the refused constants.
    except ValueError as error:
        raise EventNotJson(f"not JSON in UTF-8: {error}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return value
    raise EventTooDeep


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _events(value: object) -> list[Event | Refused]:
    if isinstance(value, dict):
        if "v" in value:
            return [_own(value)]
        if value.get("Event") == "s3:TestEvent":
            return [Ignored(reason="test_event")]
        if "Records" in value:
            return [_read_record(record) for record in _records(value["Records"])]
    elif isinstance(value, list):
        return [
            _read_record(record)
            for outer in _records(value)
            for record in _records(outer.get("Event") if isinstance(outer, dict) else None)
        ]
    raise EventShapeUnknown


def _records(value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise EventShapeUnknown("the list of records is missing or empty")
    if len(value) > MAX_RECORDS:
        raise EventTooLarge(f"{len(value)} records; the limit is {MAX_RECORDS}")
    return value


# Our own shape ------------------------------------------------------------------------------------


def _own(value: dict[str, Any]) -> Event:
    if value["v"] != 1 or isinstance(value["v"], bool):
        raise EventVersionUnknown(f"own events have version 1, this one {str(value['v'])[:20]!r}")
    unknown = value.keys() - OWN_EVENT_FIELDS
    if unknown:
        raise EventFieldInvalid(f"unknown fields: {', '.join(sorted(unknown))[:MAX_TEXT]!r}")
    upload = Upload(
        bucket=_required(value, "bucket"),
        key=_key(_required(value, "key", limit=MAX_KEY_BYTES)),
        version_id=_version(value, "version_id"),
        etag=_etag(value, "etag"),
        sequencer=_sequencer(value),
        size=_size(value),
        content_type=_text(value, "content_type"),
        sha256=_sha256(value),
        source=_text(value, "source") or "default",
        uploader=_text(value, "uploader"),
        priority=_flag(value, "priority"),
        uploaded_at=_time(value, "uploaded_at"),
        traceparent=_text(value, "traceparent"),
    )
    return _if_image(upload)


def own_event(upload: Upload) -> bytes:
    """Write an upload in our own shape; `parse` reads it back."""
    values = {
        "v": 1,
        "bucket": upload.bucket,
        "key": upload.key,
        "version_id": upload.version_id,
        "etag": upload.etag,
        "sequencer": upload.sequencer,
        "size": upload.size,
        "content_type": upload.content_type,
        "sha256": upload.sha256,
        "source": upload.source,
        "uploader": upload.uploader,
        "priority": upload.priority,
        "uploaded_at": upload.uploaded_at and upload.uploaded_at.isoformat(),
        "traceparent": upload.traceparent,
    }
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode()


# S3's shape ---------------------------------------------------------------------------------------


def _read_record(value: object) -> Event | Refused:
    try:
        return _record(value)
    except EventError as error:
        return Refused(error=error, record=value)


def _record(value: object) -> Event:
    record = _mapping(value, "record")
    version = _required(record, "eventVersion")
    if not re.fullmatch(r"2\.\d{1,4}", version):
        raise EventVersionUnknown(f"S3 events have version 2.x, this one {version[:20]!r}")
    kind = _required(record, "eventName").removeprefix("s3:")
    s3 = _mapping(record.get("s3"), "s3")
    bucket = _required(_mapping(s3.get("bucket"), "s3.bucket"), "name")
    stored = _mapping(s3.get("object"), "s3.object")
    # Three bytes of the encoded key may stand for one.
    key = _key(unquote_plus(_required(stored, "key", limit=3 * MAX_KEY_BYTES)))
    version_id = _version(stored, "versionId")
    sequencer = _sequencer(stored)
    if kind.startswith("ObjectCreated:"):
        return _if_image(
            Upload(
                bucket=bucket,
                key=key,
                version_id=version_id,
                etag=_etag(stored, "eTag"),
                sequencer=sequencer,
                size=_size(stored),
                content_type=_text(stored, "contentType"),
                uploaded_at=_time(record, "eventTime"),
            )
        )
    if kind.startswith(("ObjectRemoved:", "LifecycleExpiration:")):
        # A delete marker hides the whole key; its version id is the marker's own.
        hides = kind.endswith(":DeleteMarkerCreated")
        return Removal(
            bucket=bucket,
            key=key,
            version_id=None if hides else version_id,
            sequencer=sequencer,
        )
    return Ignored(reason="event_kind")


# Fields -------------------------------------------------------------------------------------------


def _if_image(upload: Upload) -> Upload | Ignored:
    """Pass what may be an image: by its content type if that says something, else by its name."""
    kind = (upload.content_type or "").partition(";")[0].strip().lower()
    name = upload.key.rpartition("/")[2]
    if not name:
        return Ignored(reason="folder")
    extension = name.rpartition(".")[2].lower() if "." in name else None
    if kind and kind not in VAGUE_CONTENT_TYPES:
        image = kind.startswith("image/") and kind != "image/svg+xml"
        return upload if image else Ignored(reason="content_type")
    if extension is None or extension in IMAGE_EXTENSIONS:
        return upload
    return Ignored(reason="extension")


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EventFieldInvalid(f"{name} is missing or not an object")
    return value


def _required(values: dict[str, Any], name: str, *, limit: int = MAX_TEXT) -> str:
    found = _text(values, name, limit=limit)
    if not found:
        raise EventFieldInvalid(f"{name} is missing or empty")
    return found


def _text(values: dict[str, Any], name: str, *, limit: int = MAX_TEXT) -> str | None:
    """Read text that UTF-8 and Postgres can hold; empty counts as absent."""
    value = values.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise EventFieldInvalid(f"{name} is not text")
    if "\0" in value:
        raise EventFieldInvalid(f"{name} holds a NUL character")
    try:
        length = len(value.encode())
    except UnicodeEncodeError as error:
        raise EventFieldInvalid(f"{name} holds half a surrogate pair") from error
    if length > limit:
        raise EventFieldInvalid(f"{name} has {length} bytes; the limit is {limit}")
    return value


def _key(key: str) -> str:
    """Check a decoded key, which unquoting may have changed."""
    return _required({"key": key}, "key", limit=MAX_KEY_BYTES)


def _version(values: dict[str, Any], name: str) -> str | None:
    """Read a version id; "null" is S3's word for an object without one."""
    version = _text(values, name, limit=MAX_VERSION_BYTES)
    # It becomes a part of an address; no server makes ids that cannot be printed.
    if version is not None and not version.isprintable():
        raise EventFieldInvalid(f"{name} holds control characters")
    return None if version == "null" else version


def _etag(values: dict[str, Any], name: str) -> str | None:
    etag = bare_etag(_text(values, name))
    # It becomes a header: characters of RFC 9110, section 8.8.3, that every client can send.
    if etag is not None and not re.fullmatch(r"[\x21\x23-\x7e]+", etag):
        raise EventFieldInvalid(f"{name} is no entity tag: it holds more than visible ASCII")
    return etag


def _sequencer(values: dict[str, Any]) -> str | None:
    sequencer = _text(values, "sequencer")
    if sequencer is not None and not re.fullmatch(r"[0-9A-Fa-f]{1,64}", sequencer):
        raise EventFieldInvalid("sequencer is not a hexadecimal number of at most 64 digits")
    return sequencer


def _sha256(values: dict[str, Any]) -> str | None:
    checksum = _text(values, "sha256")
    if checksum is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", checksum):
        raise EventFieldInvalid("sha256 is not 64 hexadecimal digits")
    return checksum and checksum.lower()


def _size(values: dict[str, Any]) -> int | None:
    size = values.get("size")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        raise EventFieldInvalid("size is not a number of bytes")
    return size


def _flag(values: dict[str, Any], name: str) -> bool:
    flag = values.get(name, False)
    if not isinstance(flag, bool):
        raise EventFieldInvalid(f"{name} is neither true nor false")
    return flag


def _time(values: dict[str, Any], name: str) -> datetime | None:
    written = _text(values, name)
    if written is None:
        return None
    try:
        moment = datetime.fromisoformat(written)
        # Without an offset it is UTC, as in S3's events. Near year 1 or 9999 an offset overflows.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise EventFieldInvalid(f"{name} is not a time of RFC 3339") from error
