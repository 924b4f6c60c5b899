"""How far work is: bars for a terminal, lines for a log."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from worker.cli.common.progress import show_progress

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def work() -> None:
    """Do 200 steps of one thing and one of another."""
    with show_progress() as report:
        for done in range(201):
            report("[reading]", done, 200)
        report("scoring", 1, 1)


def test_a_log_gets_a_line_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 200 steps eleven lines are left, plain text, and of a short part its one."""
    work()
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        *(f"[reading]: {done} of 200" for done in range(0, 201, 20)),
        "scoring: 1 of 1",
    ]
    assert captured.out == ""


def test_a_terminal_gets_a_bar_for_each_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bars are drawn on standard error, names as they are, and go at the end."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work()
    drawn = terminal.getvalue()
    for part in ("[reading]", "200/200", "scoring", "1/1"):
        assert part in drawn
    assert drawn.endswith("\x1b[2K")
    assert capsys.readouterr().out == ""
