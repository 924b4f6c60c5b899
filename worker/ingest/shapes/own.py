"""Our own shape, which upload hooks write: `{"v": 1, "bucket": …, "key": …}`; keys are plain."""

from __future__ import annotations

import json
from typing import Any

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import EventFieldInvalid, EventVersionUnknown
from worker.ledger.interface import Upload

#: docs/events.md says of each what it means and how long it may be.
OWN_EVENT_FIELDS = frozenset(
    {
        "v", "id", "bucket", "key", "version_id", "etag", "sequencer", "size", "content_type",
        "sha256", "source", "uploader", "priority", "uploaded_at", "traceparent",
    }
)  # fmt: skip


def read(value: dict[str, Any]) -> Upload:
    """Read one upload."""
    if value["v"] != 1 or isinstance(value["v"], bool):
        raise EventVersionUnknown(f"own events have version 1, this one {str(value['v'])[:20]!r}")
    unknown = value.keys() - OWN_EVENT_FIELDS
    if unknown:
        names = ", ".join(sorted(unknown))[: fields.MAX_TEXT]
        raise EventFieldInvalid(f"unknown fields: {names!r}")
    return Upload(
        bucket=fields.required(value, "bucket"),
        key=fields.required(value, "key", limit=fields.MAX_KEY_BYTES),
        version_id=fields.version(value, "version_id"),
        etag=fields.etag(value, "etag"),
        sequencer=fields.sequencer(value),
        size=fields.size(value),
        content_type=fields.text(value, "content_type"),
        sha256=fields.sha256(value),
        source=fields.text(value, "source") or "default",
        uploader=fields.text(value, "uploader"),
        priority=fields.flag(value, "priority"),
        uploaded_at=fields.time(value, "uploaded_at"),
        traceparent=fields.text(value, "traceparent"),
    )


def own_event(upload: Upload) -> bytes:
    """Write an upload in our own shape; `read` reads it back."""
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
