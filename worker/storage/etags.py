"""Entity tags (RFC 9110, section 8.8.3) as the ledger keeps them, and what stands in for one.

A tag is kept without its quotes and without the mark of weakness: `W/"a"` and `"a"` are the same
object here, because proxies that compress mark the tags of storage as weak.

A store that sends no tag still dates its objects. Then `modified:<seconds>:<bytes>` stands in: the
time of the last change in seconds since 1970 and the size, empty where storage does not say it.
Storage has never seen it, so it is compared on this side, with what the download itself says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

_MODIFIED = re.compile(r"modified:(\d+):(\d*)")
#: Stands in where storage says nothing at all; what follows is the event's own.
_EVENT = "event:"


def bare_etag(written: str | None) -> str | None:
    """Strip what HTTP puts around a tag; None when nothing is left."""
    if written is None:
        return None
    return written.strip().removeprefix("W/").strip('"') or None


def stand_in(modified_at: datetime | None, size: int | None) -> str | None:
    """Make a tag of when an object changed; None for an object without a date."""
    if modified_at is None:
        return None
    return f"modified:{int(modified_at.timestamp())}:{'' if size is None else size}"


def stand_in_of_event(order: str) -> str:
    """Make a tag of what orders an event; it tells uploads apart and is compared with nothing."""
    return f"{_EVENT}{order}"


def names_no_bytes(etag: str) -> bool:
    """Say whether a tag is an event's own: no object can be compared with it."""
    return etag.startswith(_EVENT)


def is_stand_in(etag: str) -> bool:
    """Say whether storage has never seen this tag."""
    return names_no_bytes(etag) or _MODIFIED.fullmatch(etag) is not None


def tells_apart(wanted: str, told: str | None) -> bool:
    """Say whether what storage tells of an object can be compared with a tag at all."""
    if told is None or wanted.startswith(_EVENT):
        return False
    return is_stand_in(wanted) == is_stand_in(told)


def is_same(wanted: str, found: str) -> bool:
    """Say whether two tags may be of one object; a size that one does not know is no difference."""
    mine, theirs = _MODIFIED.fullmatch(wanted), _MODIFIED.fullmatch(found)
    if mine is None or theirs is None:
        return wanted == found
    sizes = {mine[2], theirs[2]} - {""}
    return mine[1] == theirs[1] and len(sizes) <= 1
