"""Parses entries of the ingest list into uploads and removals; pure, safe on hostile input.

`worker.ingest.shapes` holds the shapes, one module a family; this one tells them apart, opens the
envelopes around them, and sorts out what no image can be. Nothing that an entry names is fetched.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from detection.intake.declared_type import foreign_claim
from worker.ingest.shapes import azure, eventbridge, fields, gcs, own, r2, s3, seaweedfs
from worker.ingest.shapes.outcomes import (
    OTHER_KIND,
    BucketNotAllowed,
    Event,
    EventError,
    EventFieldInvalid,
    EventNotJson,
    EventShapeUnknown,
    EventTooDeep,
    EventTooLarge,
    EventVersionUnknown,
    Ignored,
    Refused,
)
from worker.ingest.shapes.own import OWN_EVENT_FIELDS, own_event
from worker.ledger.interface import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = [
    "MAX_ENTRY_BYTES",
    "MAX_RECORDS",
    "OWN_EVENT_FIELDS",
    "BucketNotAllowed",
    "Event",
    "EventError",
    "EventFieldInvalid",
    "EventNotJson",
    "EventShapeUnknown",
    "EventTooDeep",
    "EventTooLarge",
    "EventVersionUnknown",
    "Ignored",
    "Refused",
    "own_event",
    "parse",
    "parse_records",
    "reason_to_ignore",
]

#: S3 sends at most 64 KB an event, queues carry at most 256 KB; a producer's own is far smaller.
MAX_ENTRY_BYTES = 256 * 2**10
#: Records in one entry, all its lists together.
MAX_RECORDS = 1000
#: Envelopes around one event: a queue's, a topic's, a CloudEvent, Pub/Sub's.
MAX_ENVELOPES = 4

_SUBSCRIPTION_HINT = (
    "SNS asks for a subscription to be confirmed, which this service never does: subscribe an SQS "
    "queue to the topic, which needs no confirmation, or confirm it with `aws sns "
    "confirm-subscription`."
)


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
    events = _events(fields.load(raw), MAX_ENVELOPES)
    if len(events) > MAX_RECORDS:
        raise EventTooLarge(f"{len(events)} records; the limit is {MAX_RECORDS}")
    return [_unless_foreign(_allowed(event, buckets)) for event in events]


def _allowed(event: Event | Refused, buckets: Collection[str]) -> Event | Refused:
    if isinstance(event, (Ignored, Refused)) or event.bucket in buckets:
        return event
    error = BucketNotAllowed(f"bucket {event.bucket!r} is not in the setting s3.buckets")
    return Refused(error=error, record=asdict(event))


def _unless_foreign(event: Event | Refused) -> Event | Refused:
    """Ignore what is certainly no image; the worker looks at the bytes of everything else."""
    if not isinstance(event, Upload):
        return event
    reason = reason_to_ignore(event.key, declared_type=event.content_type)
    return event if reason is None else Ignored(reason=reason)


def reason_to_ignore(key: str, *, declared_type: str | None = None) -> str | None:
    """Say why an object of this key is certainly no image; None where only its bytes can tell."""
    if key.endswith("/"):
        return "folder"
    return foreign_claim(declared_type=declared_type, key=key)


def _events(value: object, envelopes: int) -> list[Event | Refused]:
    if isinstance(value, dict):
        return _single(value, envelopes)
    if isinstance(value, list):
        return [event for item in _records(value) for event in _of_record(_item, item, envelopes)]
    raise EventShapeUnknown


def _item(value: object, envelopes: int) -> list[Event | Refused]:
    """Read an element of a list: MinIO's `access` format, or an event of a batch."""
    if not isinstance(value, dict):
        raise EventShapeUnknown
    if "Event" in value and value["Event"] != "s3:TestEvent":
        return [
            event
            for record in _records(value["Event"])
            for event in _of_record(_s3_record, record, envelopes)
        ]
    return _single(value, envelopes)


def _single(value: dict[str, Any], envelopes: int) -> list[Event | Refused]:  # noqa: C901, PLR0911 - one branch a shape
    if "v" in value:
        return [own.read(value)]
    if value.get("Event") == "s3:TestEvent":
        return [Ignored(reason="test_event")]
    if "Records" in value:
        return [
            event
            for record in _records(value["Records"])
            for event in _of_record(_record, record, envelopes)
        ]
    if "specversion" in value:
        return _cloud_event(value, envelopes)
    if "detail-type" in value:
        return [eventbridge.read(value)]
    if "eventVersion" in value and "s3" in value:
        return [s3.read_record(value)]
    if "Type" in value and "TopicArn" in value:
        return _sns(value, envelopes)
    if "attributes" in value or _is_pubsub(value.get("message")):
        return _pubsub(value, envelopes)
    if "action" in value and "object" in value:
        return [r2.read(value)]
    if "eventType" in value and "subject" in value:
        return [*azure.read(fields.required(value, "eventType"), value=value)]
    if "key" in value and "message" in value:
        return [*seaweedfs.read(value)]
    raise EventShapeUnknown


def _s3_record(value: object, _envelopes: int) -> list[Event | Refused]:
    return [s3.read_record(value)]


def _of_record(
    read: Callable[[object, int], list[Event | Refused]], record: object, envelopes: int
) -> list[Event | Refused]:
    """Read one of several records; what is wrong with it is said of it alone."""
    try:
        return read(record, envelopes)
    except EventError as error:
        return [Refused(error=error, record=record)]


def _records(value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise EventShapeUnknown("the list of records is missing or empty")
    if len(value) > MAX_RECORDS:
        raise EventTooLarge(f"{len(value)} records; the limit is {MAX_RECORDS}")
    return value


# Envelopes ----------------------------------------------------------------------------------------


def _open(content: object, envelopes: int) -> list[Event | Refused]:
    """Read what an envelope holds: JSON, or a string with JSON in it."""
    if not envelopes:
        raise EventTooDeep(f"more than {MAX_ENVELOPES} envelopes around an event")
    if isinstance(content, str):
        content = fields.load_text(content)
    return _events(content, envelopes - 1)


def _record(value: object, envelopes: int) -> list[Event | Refused]:
    """Read an element of `Records`: S3's own, or a message of SQS or SNS as Lambda gets it."""
    if isinstance(value, dict):
        if "body" in value and value.get("eventSource") == "aws:sqs":
            return _open(value["body"], envelopes)
        if "Sns" in value:
            return _sns(fields.mapping(value["Sns"], "Sns"), envelopes)
    return [s3.read_record(value)]


def _sns(value: dict[str, Any], envelopes: int) -> list[Event | Refused]:
    kind = fields.required(value, "Type")
    if kind == "Notification":
        return _open(value.get("Message"), envelopes)
    if kind == "SubscriptionConfirmation":
        return [Ignored(reason="subscription_confirmation", hint=_SUBSCRIPTION_HINT)]
    return [OTHER_KIND]


def _cloud_event(value: dict[str, Any], envelopes: int) -> list[Event | Refused]:
    version = fields.required(value, "specversion")
    if not version.startswith("1."):
        raise EventVersionUnknown(f"CloudEvents have version 1.x, this one {version[:20]!r}")
    kind = fields.required(value, "type")
    if kind.startswith(azure.PREFIX) or kind == azure.VALIDATION:
        return [*azure.read(kind, value=value)]
    data = value.get("data")
    if data is None:
        data = _decoded(value.get("data_base64"), "data_base64")
    if kind in gcs.EVENTARC_KINDS:
        loaded = fields.load_text(data) if isinstance(data, str) else data
        return [gcs.read_object(kind, fields.mapping(loaded, "data"))]
    return _open(data, envelopes)


def _is_pubsub(message: object) -> bool:
    return isinstance(message, dict) and ("attributes" in message or "data" in message)


def _pubsub(value: dict[str, Any], envelopes: int) -> list[Event | Refused]:
    """Read a message of Pub/Sub, by itself or as it is pushed."""
    message = fields.mapping(value.get("message", value), "message")
    attributes = message.get("attributes")
    attributes = {} if attributes is None else fields.mapping(attributes, "attributes")
    content = _decoded(message.get("data"), "data") if message.get("data") else None
    if "objectId" not in attributes:
        return _open(content, envelopes)
    loaded = None if content is None else fields.load_text(content)
    # A notification may come without a payload; its attributes suffice.
    stored = {} if loaded is None else fields.mapping(loaded, "data")
    return [gcs.read_attributes(attributes, stored)]


def _decoded(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise EventFieldInvalid(f"{name} is missing or not text")
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise EventFieldInvalid(f"{name} is not JSON in base64") from error
