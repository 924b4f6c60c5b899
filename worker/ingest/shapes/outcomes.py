"""What reading an event ends in: uploads, removals, what is ignored, and typed refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from detection.errors import PermanentError
from worker.ledger.interface import Removal, Upload


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
    """A valid record that asks for nothing; `reason` is a metric label.

    `hint` says what the operator has to do when something is; the bridge logs it.
    """

    reason: str
    hint: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record that cannot be used, beside others that can."""

    error: EventError
    record: object


Event = Upload | Removal | Ignored

#: What happened to an object is neither its creation nor its removal.
OTHER_KIND = Ignored(reason="event_kind")
