"""What tests wait for has the time that a busy machine takes from it, and no more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import waiting
from tests.support.waiting import IdleClock, eventually


class Machine:
    """A machine whose clocks a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed_s = self.waited_s = self.ran_s = 0.0
        monkeypatch.setattr(waiting.time, "monotonic", lambda: self.passed_s)
        monkeypatch.setattr(waiting, "_waited_s", lambda: self.waited_s)
        monkeypatch.setattr(waiting, "_ran_s", lambda: self.ran_s)

    def go_on(self, seconds: float, *, waited: float = 0.0, ran: float = 0.0) -> None:
        """Let time pass, in which something waited for a processor and the test's processes ran."""
        self.passed_s += seconds
        self.waited_s += waited
        self.ran_s += ran


def test_only_idle_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in which processors were short or processes ran is not idle; the rest is."""
    machine = Machine(monkeypatch)
    clock = IdleClock()
    machine.go_on(10)
    assert clock.seconds() == pytest.approx(10)
    machine.go_on(10, waited=9)
    assert clock.seconds() == pytest.approx(11)
    machine.go_on(10, ran=7)
    assert clock.seconds() == pytest.approx(14)
    # Two processes on two processors, and one that ended: neither makes time run backwards.
    machine.go_on(10, ran=20)
    assert clock.seconds() == pytest.approx(14)
    machine.go_on(10, ran=-30)
    assert clock.seconds() == pytest.approx(24)


def test_what_is_stuck_fails_when_the_machine_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A condition that never holds fails after its time, and says what was waited for."""
    machine = Machine(monkeypatch)
    looks = []

    def never() -> bool:
        looks.append(machine.passed_s)
        machine.go_on(60, waited=60 if len(looks) < 5 else 0)
        return False

    with pytest.raises(AssertionError, match="the end of it did not come about within 30 idle"):
        eventually(never, what="the end of it")
    assert len(looks) == 5


def test_the_processes_of_this_test_are_seen() -> None:
    """What a child has used is counted, and its own children's part of it."""
    before_s = waiting._ran_s()
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert waiting._ran_s() - before_s >= 0.25
        child.kill()
