"""`unlatent` as its users call it, in the process of the test."""

from __future__ import annotations

import sys

import pytest

from worker import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `unlatent` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["unlatent", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code
