"""Who is signed in: kept in this process, so that a password lies nowhere else."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

#: Sessions at once; each holds a few connections to the database.
MOST = 200
#: A session ends after this time whatever happens in it: a working day, with its breaks.
LONGEST_S = 12 * 3600.0


@dataclass(slots=True)
class Session:
    """One browser that is signed in; `engine` asks the database as the moderator's own login."""

    moderator: str
    engine: Engine
    begun: float
    seen: float = field(default=0.0)


class Sessions:
    """Sessions by their random ids; one that idled too long is gone, and so are its connections."""

    def __init__(self, *, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Session] = {}

    def begin(self, moderator: str, engine: Engine) -> str:
        """Return the id of a new session; at the limit, the one that idled longest gives way."""
        now = self._clock()
        session_id = secrets.token_urlsafe(32)
        with self._lock:
            ended = self._expired(now)
            if len(self._known) >= MOST:
                oldest = min(self._known, key=lambda known: self._known[known].seen)
                ended.append(self._known.pop(oldest))
            self._known[session_id] = Session(moderator, engine, begun=now, seen=now)
        _dispose(ended)
        return session_id

    def find(self, session_id: str | None) -> Session | None:
        """Return the session, which counts as seen now, unless it is over."""
        now = self._clock()
        with self._lock:
            ended = self._expired(now)
            session = self._known.get(session_id or "")
            if session is not None:
                session.seen = now
        _dispose(ended)
        return session

    def end(self, session_id: str | None) -> None:
        """End a session, if there is one."""
        with self._lock:
            session = self._known.pop(session_id or "", None)
        _dispose([] if session is None else [session])

    def close(self) -> None:
        """End them all."""
        with self._lock:
            ended = [*self._known.values()]
            self._known.clear()
        _dispose(ended)

    def _expired(self, now: float) -> list[Session]:
        over = [
            session_id
            for session_id, session in self._known.items()
            if now - session.seen > self._idle_s or now - session.begun > LONGEST_S
        ]
        return [self._known.pop(session_id) for session_id in over]


def _dispose(ended: list[Session]) -> None:
    for session in ended:
        session.engine.dispose()
