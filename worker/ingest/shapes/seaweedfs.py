"""Messages of SeaweedFS' filer, as its webhook sends them; paths are plain.

The filer knows files, not objects: what lies below `/buckets/<bucket>/` is an object of the bucket.
Messages carry no entity tag that its S3 gateway would answer with, so the bridge asks the gateway.
"""

from __future__ import annotations

from typing import Any

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import OTHER_KIND, Event, EventFieldInvalid, Ignored
from worker.ledger.interface import Removal, Upload

_BUCKETS = "/buckets/"
#: Where the gateway collects the parts of an upload, below the bucket.
_PARTS = ".uploads/"
_MAX_PATH = fields.MAX_KEY_BYTES + fields.MAX_TEXT


def read(value: dict[str, Any]) -> list[Event]:
    """Read one message; a renaming is a removal and an upload."""
    path = fields.required(value, "key", limit=_MAX_PATH)
    message = fields.mapping(value.get("message"), "message")
    old, new = _part(message, "old_entry"), _part(message, "new_entry")
    new_path = _new_path(path, message, new)
    events: list[Event] = []
    if old and (not new or new_path != path):
        events.append(_event(path, old, removed=True))
    if new:
        events.append(_event(new_path, new, removed=False))
    return events or [OTHER_KIND]


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Read an object that may be missing."""
    found = values.get(name)
    return {} if found is None else fields.mapping(found, name)


def _new_path(path: str, message: dict[str, Any], new: dict[str, Any]) -> str:
    """Return where the new entry lies: only a renaming tells it from the message's own path."""
    parent = fields.text(message, "new_parent_path", limit=_MAX_PATH)
    name = fields.text(new, "name", limit=fields.MAX_KEY_BYTES)
    return f"{parent.rstrip('/')}/{name}" if parent and name else path


def _event(path: str, entry: dict[str, Any], *, removed: bool) -> Event:
    if not path.startswith(_BUCKETS):
        return Ignored(reason="outside_buckets")
    bucket, _, key = path.removeprefix(_BUCKETS).partition("/")
    if not key or fields.flag(entry, "is_directory"):
        return Ignored(reason="folder")
    if key.startswith(_PARTS):
        return OTHER_KIND
    if not bucket:
        raise EventFieldInvalid("key names no bucket")
    key = fields.checked_key(key)
    if removed:
        return Removal(bucket=bucket, key=key)
    attributes = _part(entry, "attributes")
    return Upload(
        bucket=bucket,
        key=key,
        size=fields.written_size(attributes, "file_size"),
        content_type=fields.text(attributes, "mime"),
    )
