"""What commands add to an error when nobody has said where the services are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from worker.cli import main

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = "postgresql+psycopg://u@127.0.0.1:1/x"
HINT = "(no address is set and no local stack runs: `unlatent up`, or `unlatent config`)\n"


def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Ask for verdicts of a Postgres that is not there; return the error."""
    monkeypatch.setattr(sys, "argv", ["unlatent", "verdicts"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 1
    return capsys.readouterr().err


def test_services_that_nobody_named_are_told_how_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without an address and a local stack the error ends with what to do."""
    monkeypatch.chdir(tmp_path)
    # Another setting than an address; a Postgres on the default port of this machine is not ours.
    monkeypatch.setenv("UNLATENT_POSTGRES__MODERATOR_URL", NOBODY)
    assert ask(monkeypatch, capsys).endswith(HINT)


def test_an_address_that_is_set_gets_no_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whoever set an address knows that it is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLATENT_POSTGRES__URL", NOBODY)
    error = ask(monkeypatch, capsys)
    assert "127.0.0.1" in error
    assert not error.endswith(HINT)
