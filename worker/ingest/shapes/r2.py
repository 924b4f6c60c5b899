"""Event notifications of Cloudflare R2; keys are plain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import OTHER_KIND, Event
from worker.ledger.interface import Removal, Upload

if TYPE_CHECKING:
    from datetime import datetime

_CREATED = frozenset({"PutObject", "CopyObject", "CompleteMultipartUpload"})
_DELETED = frozenset({"DeleteObject", "LifecycleDeletion"})


def read(value: dict[str, Any]) -> Event:
    """Read one notification."""
    action = fields.required(value, "action")
    if action not in _CREATED | _DELETED:
        return OTHER_KIND
    bucket = fields.required(value, "bucket")
    stored = fields.mapping(value.get("object"), "object")
    key = fields.required(stored, "key", limit=fields.MAX_KEY_BYTES)
    event_at = fields.any_time(value, "eventTime")
    if action in _DELETED:
        return Removal(bucket=bucket, key=key, sequencer=_sequencer(event_at))
    return Upload(
        bucket=bucket,
        key=key,
        etag=fields.etag(stored, "eTag"),
        sequencer=_sequencer(event_at),
        size=fields.written_size(stored),
        uploaded_at=event_at,
    )


def _sequencer(event_at: datetime | None) -> str | None:
    """Order events by their time: R2 gives no sequencer, and its queue keeps no order."""
    if event_at is None or event_at.timestamp() < 0:
        return None
    return f"{int(event_at.timestamp() * 1000):012X}"
