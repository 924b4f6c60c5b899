"""Records of S3 and of the servers that write them as S3 does: MinIO, Ceph and others.

Keys are URL-encoded (a space is a plus sign). Ceph's RGW documents the same shape but writes plain
keys, so an event whose key changes on decoding carries both: see `worker.ingest.key_encoding`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import OTHER_KIND, Event, EventFieldInvalid, EventVersionUnknown
from worker.ledger.interface import Removal, Upload

if TYPE_CHECKING:
    from datetime import datetime

#: MinIO's name as a source; it encodes every key. Ceph's releases call themselves by several names.
_ENCODES = "minio:s3"
#: How far the clock of a Ceph gateway may be from itself between an event's two times, in seconds.
_SAME_EVENT_S = 3600


def read_record(value: object) -> Event:
    """Read one record of an S3 event."""
    record = fields.mapping(value, "record")
    version = fields.required(record, "eventVersion")
    if not re.fullmatch(r"2\.\d{1,4}", version):
        raise EventVersionUnknown(f"S3 events have version 2.x, this one {version[:20]!r}")
    kind = fields.required(record, "eventName").removeprefix("s3:")
    # Ceph's gateways tell when an object arrived from another zone.
    if kind.startswith("ObjectCreated:") or kind == "ObjectSynced:Create":
        return _upload(record)
    if kind.startswith(("ObjectRemoved:", "LifecycleExpiration:")):
        # A delete marker hides the whole key; its version id is the marker's own.
        return _removal(record, hides=kind.endswith(":DeleteMarkerCreated"))
    if kind == "ObjectLifecycle:Expiration:Current":  # Ceph's: gone, or hidden by a marker
        return _removal(record, hides=True)
    if kind == "ObjectLifecycle:Expiration:NonCurrent":
        return _removal(record, hides=False)
    return OTHER_KIND


def _upload(record: dict[str, Any]) -> Upload:
    bucket, stored = _parts(record)
    key, raw_key = _keys(stored, encoded=record.get("eventSource") == _ENCODES)
    uploaded_at = fields.any_time(record, "eventTime")
    return Upload(
        bucket=bucket,
        key=key,
        raw_key=raw_key,
        version_id=fields.version(stored, "versionId"),
        # Early releases of Ceph wrote `etag`.
        etag=fields.etag(stored, "eTag") or fields.etag(stored, "etag"),
        sequencer=_sequencer(stored, uploaded_at),
        size=fields.written_size(stored),
        content_type=fields.text(stored, "contentType"),
        uploaded_at=uploaded_at,
    )


def _removal(record: dict[str, Any], *, hides: bool) -> Removal:
    bucket, stored = _parts(record)
    key, raw_key = _keys(stored, encoded=record.get("eventSource") == _ENCODES)
    version_id = fields.version(stored, "versionId")
    return Removal(
        bucket=bucket,
        key=key,
        raw_key=raw_key,
        version_id=None if hides else version_id,
        sequencer=_sequencer(stored, fields.any_time(record, "eventTime")),
    )


def _parts(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    s3 = fields.mapping(record.get("s3"), "s3")
    bucket = fields.required(fields.mapping(s3.get("bucket"), "s3.bucket"), "name")
    return bucket, fields.mapping(s3.get("object"), "s3.object")


def _keys(stored: dict[str, Any], *, encoded: bool) -> tuple[str, str | None]:
    """Return the decoded key and, where that leaves a doubt, the key as it is written."""
    # Three bytes of the encoded key may stand for one.
    written = fields.required(stored, "key", limit=3 * fields.MAX_KEY_BYTES)
    decoded = _decoded(written)
    if decoded is None:
        return fields.checked_key(written), None
    try:
        raw = None if encoded or decoded == written else fields.checked_key(written)
    except EventFieldInvalid:
        raw = None  # too long to be a key as it is written
    return fields.checked_key(decoded), raw


def _decoded(written: str) -> str | None:
    """Undo URL encoding; None for what no encoder writes."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", written):
        return None
    try:
        return unquote_plus(written, errors="strict")
    except UnicodeDecodeError:
        return None


def _sequencer(stored: dict[str, Any], event_at: datetime | None) -> str | None:
    """Read the sequencer; Ceph's become comparable.

    Ceph dumps the memory of its time, two 32-bit numbers (seconds, nanoseconds) of which
    little-endian machines store the lowest byte first. What reads as the event's own second that
    way is one of these.
    """
    sequencer = fields.sequencer(stored)
    if sequencer is None or len(sequencer) != 16 or event_at is None:
        return sequencer
    dumped = bytes.fromhex(sequencer)
    seconds = int.from_bytes(dumped[:4], "little")
    if abs(seconds - event_at.timestamp()) > _SAME_EVENT_S:
        return sequencer
    return (dumped[3::-1] + dumped[:3:-1]).hex().upper()
