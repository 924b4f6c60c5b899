"""The fields that events have in common, read one by one; everything raises `EventError` only."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from worker.ingest.shapes.outcomes import EventFieldInvalid, EventNotJson, EventTooDeep
from worker.storage.etags import bare_etag

#: The deepest shape that is read (a CloudEvent around a Pub/Sub message around an S3 event with
#: metadata) is 9 deep in one JSON text.
MAX_DEPTH = 16
#: S3's limit on the UTF-8 bytes of a key and of a version id; all that identifies an upload must
#: also fit one index entry of Postgres (2704 bytes).
MAX_KEY_BYTES = 1024
MAX_VERSION_BYTES = 1024
MAX_TEXT = 200
#: Postgres' bigint.
MAX_SIZE = 2**63 - 1


def load(raw: bytes) -> object:
    """Read JSON in UTF-8 that is at most `MAX_DEPTH` deep."""
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


def load_text(text: str) -> object:
    """Read JSON that stands in a string of other JSON."""
    # A half of a surrogate pair has no bytes; `load` then refuses what stands for it.
    return load(text.encode(errors="surrogatepass"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def mapping(value: object, name: str) -> dict[str, Any]:
    """Read an object."""
    if not isinstance(value, dict):
        raise EventFieldInvalid(f"{name} is missing or not an object")
    return value


def required(values: dict[str, Any], name: str, *, limit: int = MAX_TEXT) -> str:
    """Read text that must be there."""
    found = text(values, name, limit=limit)
    if not found:
        raise EventFieldInvalid(f"{name} is missing or empty")
    return found


def text(values: dict[str, Any], name: str, *, limit: int = MAX_TEXT) -> str | None:
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


def checked_key(key: str) -> str:
    """Check a key that is not a field by itself: decoded, or part of a path."""
    return required({"key": key}, "key", limit=MAX_KEY_BYTES)


def version(values: dict[str, Any], name: str) -> str | None:
    """Read a version id; "null" is S3's word for an object without one."""
    found = text(values, name, limit=MAX_VERSION_BYTES)
    # It becomes a part of an address; no server makes ids that cannot be printed.
    if found is not None and not found.isprintable():
        raise EventFieldInvalid(f"{name} holds control characters")
    return None if found == "null" else found


def etag(values: dict[str, Any], name: str) -> str | None:
    """Read an entity tag, which some producers write with its quotes and its weakness."""
    found = bare_etag(text(values, name))
    # It becomes a header: characters of RFC 9110, section 8.8.3, that every client can send.
    if found is not None and not re.fullmatch(r"[\x21\x23-\x7e]+", found):
        raise EventFieldInvalid(f"{name} is no entity tag: it holds more than visible ASCII")
    return found


def sequencer(values: dict[str, Any]) -> str | None:
    """Read S3's order of the events of one key."""
    found = text(values, "sequencer")
    if found is not None and not re.fullmatch(r"[0-9A-Fa-f]{1,64}", found):
        raise EventFieldInvalid("sequencer is not a hexadecimal number of at most 64 digits")
    return found


def sha256(values: dict[str, Any]) -> str | None:
    """Read a checksum in hexadecimal digits."""
    checksum = text(values, "sha256")
    if checksum is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", checksum):
        raise EventFieldInvalid("sha256 is not 64 hexadecimal digits")
    return checksum and checksum.lower()


def size(values: dict[str, Any], name: str = "size") -> int | None:
    """Read a number of bytes."""
    found = values.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MAX_SIZE:
        raise EventFieldInvalid(f"{name} is not a number of bytes")
    return found


def written_size(values: dict[str, Any], name: str = "size") -> int | None:
    """Read a number of bytes that may be written as text, as 64-bit numbers often are in JSON."""
    found = values.get(name)
    if isinstance(found, str) and re.fullmatch(r"[0-9]{1,19}", found):
        return size({name: int(found)}, name)
    return size(values, name)


def flag(values: dict[str, Any], name: str) -> bool:
    """Read a boolean that is False unless it is there."""
    found = values.get(name, False)
    if not isinstance(found, bool):
        raise EventFieldInvalid(f"{name} is neither true nor false")
    return found


def time(values: dict[str, Any], name: str) -> datetime | None:
    """Read a time of RFC 3339; without an offset it is UTC, as in S3's events."""
    written = text(values, name)
    if written is None:
        return None
    try:
        moment = datetime.fromisoformat(written)
        # Near year 1 or 9999 an offset overflows.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise EventFieldInvalid(f"{name} is not a time of RFC 3339") from error


def any_time(values: dict[str, Any], name: str) -> datetime | None:
    """Read a time where it is one: no upload is lost because a store writes its times otherwise."""
    try:
        return time(values, name)
    except EventFieldInvalid:
        return None
