"""Notifications of Google Cloud Storage, by way of Pub/Sub or Eventarc; keys are plain.

The entity tag of the JSON interface is not the one that the S3-compatible interface answers with,
and that interface knows no generations as version ids. So an upload has neither, and the bridge
asks the store. Generations only grow for a key: they order its events.
"""

from __future__ import annotations

import re
from typing import Any

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import OTHER_KIND, Event, EventFieldInvalid, Ignored
from worker.ledger.interface import Removal, Upload

#: Eventarc's names for what Pub/Sub's attribute `eventType` says.
EVENTARC_KINDS = {
    "google.cloud.storage.object.v1.finalized": "OBJECT_FINALIZE",
    "google.cloud.storage.object.v1.deleted": "OBJECT_DELETE",
    "google.cloud.storage.object.v1.archived": "OBJECT_ARCHIVE",
    "google.cloud.storage.object.v1.metadataUpdated": "OBJECT_METADATA_UPDATE",
}


def read_attributes(attributes: dict[str, Any], stored: dict[str, Any]) -> Event:
    """Read a Pub/Sub message; `stored` is the object of its payload, empty without one."""
    if fields.text(attributes, "overwrittenByGeneration") is not None:
        # The object that takes its place has an event of its own.
        return Ignored(reason="overwritten")
    return _read(
        fields.required(attributes, "eventType"),
        bucket=fields.required(attributes, "bucketId"),
        key=fields.required(attributes, "objectId", limit=fields.MAX_KEY_BYTES),
        generation=fields.text(attributes, "objectGeneration"),
        stored=stored,
    )


def read_object(kind: str, stored: dict[str, Any]) -> Event:
    """Read the data of one of Eventarc's CloudEvents."""
    return _read(
        EVENTARC_KINDS.get(kind, kind),
        bucket=fields.required(stored, "bucket"),
        key=fields.required(stored, "name", limit=fields.MAX_KEY_BYTES),
        generation=fields.text(stored, "generation"),
        stored=stored,
    )


def _read(
    kind: str, *, bucket: str, key: str, generation: str | None, stored: dict[str, Any]
) -> Event:
    if generation is not None and not re.fullmatch(r"[0-9]{1,19}", generation):
        raise EventFieldInvalid("the generation is not a number of at most 19 digits")
    order = None if generation is None else f"{int(generation):016X}"
    if kind == "OBJECT_FINALIZE":
        return Upload(
            bucket=bucket,
            key=key,
            sequencer=order,
            size=fields.written_size(stored),
            content_type=fields.text(stored, "contentType"),
            uploaded_at=fields.any_time(stored, "timeCreated"),
        )
    if kind in {"OBJECT_DELETE", "OBJECT_ARCHIVE"}:
        # It comes after the creation of its generation and before that of the next one.
        return Removal(bucket=bucket, key=key, sequencer=order and f"{order}1")
    return OTHER_KIND
