"""Blob events of Azure Event Grid, in its own schema and as CloudEvents.

The container is the bucket and the blob's path the key. Entity tags are Azure's, not those of
whatever serves the container by the S3 protocol, so an upload has none and the bridge asks.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from worker.ingest.shapes import fields
from worker.ingest.shapes.outcomes import OTHER_KIND, Event, EventFieldInvalid, Ignored
from worker.ledger.interface import Removal, Upload

PREFIX = "Microsoft.Storage."
VALIDATION = "Microsoft.EventGrid.SubscriptionValidationEvent"
VALIDATION_HINT = (
    "Event Grid wants its subscription validated: whoever receives its requests answers with the "
    "event's validationCode; this service never does."
)
#: An empty blob that is still being written; its end has an event of its own.
_UNCOMMITTED = frozenset({"CreateFile", "SftpCreate"})
_SUBJECT = re.compile(r"/blobServices/[^/]+/containers/([^/]+)/blobs/(.+)", re.DOTALL)
#: The subject's fixed words, a container's name and a key.
_MAX_SUBJECT = fields.MAX_KEY_BYTES + 2 * fields.MAX_TEXT


def read(kind: str, *, value: dict[str, Any]) -> list[Event]:
    """Read an event of type `kind`; a renaming is a removal and an upload."""
    if kind == VALIDATION:
        return [Ignored(reason="subscription_confirmation", hint=VALIDATION_HINT)]
    action = kind.removeprefix(PREFIX)
    if action not in {"BlobCreated", "BlobDeleted", "BlobRenamed"}:
        return [OTHER_KIND]
    found = _SUBJECT.fullmatch(fields.required(value, "subject", limit=_MAX_SUBJECT))
    if found is None:
        raise EventFieldInvalid("subject names no blob: /blobServices/…/containers/…/blobs/…")
    bucket, key = found[1], fields.checked_key(found[2])
    data = fields.mapping(value.get("data"), "data")
    sequencer = _sequencer(data)
    if action == "BlobDeleted":
        return [Removal(bucket=bucket, key=key, sequencer=sequencer)]
    if fields.text(data, "api") in _UNCOMMITTED:
        return [OTHER_KIND]
    upload = Upload(
        bucket=bucket,
        key=key,
        sequencer=sequencer,
        size=_size(data),
        content_type=fields.text(data, "contentType"),
        uploaded_at=fields.any_time(value, "eventTime") or fields.any_time(value, "time"),
    )
    if action == "BlobCreated":
        return [upload]
    return [*_moved_away(data, sequencer), upload]


def _moved_away(data: dict[str, Any], sequencer: str | None) -> list[Event]:
    """Read where a renamed blob was; another container's is none of this bucket's."""
    written = fields.text(data, "sourceUrl", limit=4 * _MAX_SUBJECT)
    try:
        path = urlsplit(written or "").path
    except ValueError as error:
        raise EventFieldInvalid("sourceUrl is no address") from error
    bucket, _, key = path.lstrip("/").partition("/")
    if not key:
        return []
    return [Removal(bucket=bucket, key=fields.checked_key(unquote(key)), sequencer=sequencer)]


def _size(data: dict[str, Any]) -> int | None:
    # Events of files written in pieces count 0 or the last piece.
    return fields.written_size(data, "contentLength") if "contentOffset" not in data else None


def _sequencer(data: dict[str, Any]) -> str | None:
    """Read the order of a blob's events: opaque text, in practice hexadecimal digits."""
    try:
        return fields.sequencer(data)
    except EventFieldInvalid:
        return None
