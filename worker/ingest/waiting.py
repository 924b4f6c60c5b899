"""Events of which storage has yet to say what they mean, in a sorted set that bridges share.

A member is an event with how often storage was asked for it, in JSON; its
score is when it is due, in seconds since 1970 by Redis' clock. A bridge that takes members puts
their scores off, so that another one does them should this one die.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast

from redis.exceptions import OutOfMemoryError

from detection.errors import PermanentError, TransientError
from worker.ledger.interface import Removal, Upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

#: So many events wait at most; beyond that, entries stay where they are.
LONGEST = 100_000
#: A bridge that took members and was not done after so long, in seconds, is taken for dead.
CLAIM_S = 120

#: Moves the entry ARGV[1] of the list KEYS[1] to the set KEYS[2], as the members from ARGV[4] on,
#: due at ARGV[3]; returns how many wait, or -1 when ARGV[2] do already. Removing comes first: once
#: a script has written, Redis lets it finish even without memory.
_PUT = """
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) then return -1 end
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
    for index = 4, #ARGV do redis.call('ZADD', KEYS[2], ARGV[3], ARGV[index]) end
end
return redis.call('ZCARD', KEYS[2])
"""

#: Returns up to ARGV[2] members of KEYS[1] that are due at ARGV[1], and puts them off to ARGV[3].
_CLAIM = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[3], member) end
return due
"""

#: Takes the member ARGV[1] from KEYS[1] and puts ARGV[2] in its place, due at ARGV[3].
_PUT_OFF = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2])
end
"""


class TooManyWaiting(TransientError):
    """As many events wait for storage as may; entries that would join them wait in their list."""


class MemberUnreadable(PermanentError):
    """A member of the set is no event that this release sets aside."""

    reason: ClassVar[str] = "waiting_unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEvent:
    """One member; `tries` of its `attempts` count against its budget, `since` is when it came."""

    event: Upload | Removal
    since: float
    attempts: int = 0
    tries: int = 0

    def written(self) -> bytes:
        """Write it as a member."""
        kind = "removal" if isinstance(self.event, Removal) else "upload"
        event = {name: value for name, value in asdict(self.event).items() if value is not None}
        values = {"since": self.since, "attempts": self.attempts, "tries": self.tries, kind: event}
        return json.dumps(values, default=datetime.isoformat).encode()


def read_member(member: bytes) -> WaitingEvent:
    """Read what `written` wrote; raises `MemberUnreadable` for anything else."""
    try:
        return _read(json.loads(member))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"set aside by another release, or by hand: {type(error).__name__}: {error}"
        raise MemberUnreadable(message) from error


def _read(values: dict[str, Any]) -> WaitingEvent:
    event: Upload | Removal
    if "removal" in values:
        event = Removal(**values.pop("removal"))
    else:
        upload = values.pop("upload")
        if "uploaded_at" in upload:
            upload["uploaded_at"] = datetime.fromisoformat(upload["uploaded_at"])
        event = Upload(**upload)
    return WaitingEvent(event=event, **values)


class WaitingEvents:
    """The sorted set at `key`; every method raises `RedisError` when Redis is away."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    def now(self) -> float:
        """Return Redis' time, in seconds since 1970."""
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def put(self, list_key: str, entry: bytes, events: Sequence[Upload | Removal]) -> None:
        """Move an entry of a list here, as the events of it that wait; due at once.

        Raises `TooManyWaiting`, and leaves the entry, when the set is full.
        """
        now = self.now()
        members = [WaitingEvent(event=one, since=now).written() for one in events]
        fixed = (entry, str(LONGEST), str(now))
        waiting = self._redis.eval(_PUT, 2, list_key, self._key, *fixed, *members)
        if waiting == -1:
            raise TooManyWaiting

    def claim(self, limit: int) -> list[bytes]:
        """Return up to `limit` members that are due; nobody else gets them for a while."""
        now = self.now()
        try:
            due = self._redis.eval(_CLAIM, 1, self._key, str(now), str(limit), str(now + CLAIM_S))
        except OutOfMemoryError:
            # Reading needs no memory, and what is done twice is done once.
            due = self._redis.zrangebyscore(self._key, "-inf", now, start=0, num=limit)
        return cast("list[bytes]", due)

    def put_off(self, member: bytes, *, delay_s: float, counted: bool, asked: bool) -> None:
        """Let a member be due again after a while, and remember whether it was asked for."""
        known = read_member(member)
        later = replace(known, attempts=known.attempts + asked, tries=known.tries + counted)
        due = str(self.now() + delay_s)
        self._redis.eval(_PUT_OFF, 1, self._key, member, later.written(), due)

    def remove(self, members: Sequence[bytes]) -> None:
        """Take away what is done."""
        if members:
            self._redis.zrem(self._key, *members)

    def count(self) -> int:
        """Count what waits."""
        return self._redis.zcard(self._key)
