"""Waiting for what happens in another thread or process, however busy or slow the machine is.

What a deadline counts is idle time: when something waits for a processor, or a process that the
test started runs, the system under test is on its way, and how long that takes is the machine's
affair. A system that is stuck lets the processors idle. What spins for ever is ended by the test's
own time-out.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: The kernel's count of the microseconds in which something waited for a processor (PSI).
_PRESSURE = Path("/proc/pressure/cpu")
#: Reading what every process does is no small work itself.
_LOOK_EVERY_S = 0.5


class IdleClock:
    """Seconds in which neither a processor was waited for nor a process of the test ran."""

    def __init__(self) -> None:
        self._idle_s = 0.0
        self._looked_at = time.monotonic()
        self._waited_s, self._ran_s = _waited_s(), _ran_s()

    def seconds(self) -> float:
        """Return how much idle time has passed since the clock was made."""
        now = time.monotonic()
        passed = now - self._looked_at
        if passed >= _LOOK_EVERY_S:
            waited_s, ran_s = _waited_s(), _ran_s()
            # The processes' sum falls when one ends.
            busy = max(waited_s - self._waited_s, ran_s - self._ran_s, 0.0)
            self._idle_s += max(0.0, passed - busy)
            self._looked_at, self._waited_s, self._ran_s = now, waited_s, ran_s
        return self._idle_s


def eventually(
    condition: Callable[[], bool], *, timeout_s: float = 30.0, what: str = "the condition"
) -> None:
    """Poll until the condition holds; fail the test when it does not within so much idle time."""
    clock = IdleClock()
    while not condition():
        if clock.seconds() > timeout_s:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} idle seconds")
        time.sleep(0.02)


def _waited_s() -> float:
    try:
        some = _PRESSURE.read_text().splitlines()[0]
    except OSError:  # a kernel without it, or one that does not let us
        return 0.0
    return int(some.rpartition("=")[2]) / 1e6


def _ran_s() -> float:
    """Return the processor time of every descendant of this process, in seconds."""
    parents: dict[int, int] = {}
    ran: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # Fields 4, 14 and 15 of proc(5), counted behind the name, which may hold anything.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(fields[1])
        ran[int(folder.name)] = int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    # A child may have a lower number than its parent: as often as families are deep.
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    ticks: int = os.sysconf("SC_CLK_TCK")
    return sum(ran.get(pid, 0) for pid in ours - {os.getpid()}) / ticks
