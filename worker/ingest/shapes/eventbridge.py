"""S3's events by way of EventBridge: other names, and keys that are not URL-encoded."""

from __future__ import annotations

from typing import Any

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import OTHER_KIND, Event
from worker.ledger.interface import Removal, Upload


def read(value: dict[str, Any]) -> Event:
    """Read an event of source `aws.s3`."""
    kind = fields.required(value, "detail-type")
    if fields.required(value, "source") != "aws.s3" or kind not in {
        "Object Created",
        "Object Deleted",
    }:
        return OTHER_KIND
    detail = fields.mapping(value.get("detail"), "detail")
    bucket = fields.required(fields.mapping(detail.get("bucket"), "detail.bucket"), "name")
    stored = fields.mapping(detail.get("object"), "detail.object")
    key = fields.required(stored, "key", limit=fields.MAX_KEY_BYTES)
    version_id, sequencer = fields.version(stored, "version-id"), fields.sequencer(stored)
    if kind == "Object Created":
        return Upload(
            bucket=bucket,
            key=key,
            version_id=version_id,
            etag=fields.etag(stored, "etag"),
            sequencer=sequencer,
            size=fields.written_size(stored),
            uploaded_at=fields.any_time(value, "time"),
        )
    # A delete marker hides the whole key; its version id is the marker's own.
    hides = fields.text(detail, "deletion-type") == "Delete Marker Created"
    return Removal(
        bucket=bucket, key=key, version_id=None if hides else version_id, sequencer=sequencer
    )
