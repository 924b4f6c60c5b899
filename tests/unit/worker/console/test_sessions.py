"""Sessions end, and let go of their connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from worker.console import sessions
from worker.console.sessions import LONGEST_S, Sessions

if TYPE_CHECKING:
    import pytest
    from sqlalchemy import Engine


class Connections:
    """Counts how often it was let go of."""

    def __init__(self) -> None:
        self.disposed = 0

    def dispose(self) -> None:
        """Let go."""
        self.disposed += 1


class Clock:
    """The time that a test says it is, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        """Return it."""
        return self.now


def _begin(known: Sessions, connections: Connections) -> str:
    return known.begin("kim", cast("Engine", connections))


def test_a_session_that_idles_too_long_is_over() -> None:
    """Each look at it counts; after the idle time it is gone and its connections are closed."""
    clock, connections = Clock(), Connections()
    known = Sessions(idle_s=60, clock=clock)
    session = _begin(known, connections)
    for _ in range(5):
        clock.now += 59
        assert known.find(session) is not None
    assert connections.disposed == 0
    clock.now += 61
    assert known.find(session) is None
    assert connections.disposed == 1


def test_a_session_in_use_ends_with_the_working_day() -> None:
    """Requests do not keep it for ever."""
    clock = Clock()
    known = Sessions(idle_s=LONGEST_S, clock=clock)
    session = _begin(known, Connections())
    clock.now = LONGEST_S / 2
    assert known.find(session) is not None
    clock.now = LONGEST_S + 1
    assert known.find(session) is None


def test_the_session_that_idled_longest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are never more than the limit; nobody is locked out by others' sessions."""
    monkeypatch.setattr(sessions, "MOST", 2)
    clock = Clock()
    known = Sessions(idle_s=60, clock=clock)
    first, second = _begin(known, Connections()), _begin(known, Connections())
    clock.now = 1
    known.find(first)
    third = _begin(known, Connections())
    assert [known.find(one) is not None for one in (first, second, third)] == [True, False, True]


def test_unknown_ids_are_nobodys() -> None:
    """No id, an empty one and a guess find nothing; ending them does nothing."""
    known = Sessions(idle_s=60)
    _begin(known, Connections())
    for guess in (None, "", "guess"):
        assert known.find(guess) is None
        known.end(guess)
