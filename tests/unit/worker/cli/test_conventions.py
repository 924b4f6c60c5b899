"""What people expect of any command line: -h, --version, completion, colours, exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from tests.support.docs.cli_page import PAGE, commands, render
from worker.cli import EXIT_CODES, build_app
from worker.cli.context import Context
from worker.scoring.device_thread import EXIT_DEVICE_LOST, EXIT_STUCK

UNLATENT = Path(sys.executable).with_name("unlatent")
#: Commands that print rows, each of them in every format.
OF_ROWS = {
    "appeals close", "appeals list", "appeals open", "capacity", "check", "config", "decide",
    "drift", "holds lift", "holds list", "holds place", "models list", "moderators list",
    "policy list", "presets list", "presets show", "quality", "reasons", "rejected", "review claim",
    "review extend", "review list", "review release", "review request", "review skip", "verdicts",
    "webhooks dead",
}  # fmt: skip


def tree() -> dict[str, Any]:
    """Return every command and group by the words that lead to it."""
    application = typer.main.get_command(build_app())
    return {" ".join(words): command for words, command in commands(application)}


def test_every_command_has_h(capsys: pytest.CaptureFixture[str]) -> None:
    """`-h` prints the help of the program, its groups and their commands."""
    application = typer.main.get_command(build_app())
    for words in ("", *tree()):
        asked = [*words.split(), "-h"]
        application.main(asked, prog_name="unlatent", standalone_mode=False, obj=Context())
        assert f"Usage: unlatent {words}".rstrip() in capsys.readouterr().out


def test_the_version_is_that_of_the_package() -> None:
    """One line, name and version, whatever else is asked."""
    told = CliRunner().invoke(build_app(), ["--version", "config"], obj=Context())
    assert (told.exit_code, told.output) == (0, f"unlatent {metadata.version('unlatent')}\n")


def test_rows_come_in_every_format() -> None:
    """These commands have `--format`, and no other has one of its own."""
    formats = {
        words: option.get_help_record(command.make_context("x", [], resilient_parsing=True))[0]
        for words, command in tree().items()
        for option in command.params
        if "--format" in option.opts
    }
    assert formats.keys() == OF_ROWS
    assert set(formats.values()) == {"--format <table|json|jsonl|csv>"}


def test_the_page_is_what_the_code_says() -> None:
    """`python -m tests.support.docs.cli_page` writes docs/cli.md."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_the_exit_codes_of_the_worker_are_in_the_table() -> None:
    """What ends a worker by itself has the number that is documented."""
    assert {0, 1, 2, EXIT_DEVICE_LOST, EXIT_STUCK, 129, 130, 143} == set(EXIT_CODES)
    assert "device" in EXIT_CODES[EXIT_DEVICE_LOST]
    assert "hung" in EXIT_CODES[EXIT_STUCK]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("unlatent mod", {"models", "moderators"}),
        ("unlatent review re", {"release", "request"}),
        ("unlatent models list --format js", {"json", "jsonl"}),
    ],
)
def test_bash_completes(typed: str, expected: set[str]) -> None:
    """A bash that read the script completes commands, groups and choices."""
    script = run({"_UNLATENT_COMPLETE": "source_bash"})
    asked = (
        f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        f'_unlatent_completion {UNLATENT}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("shell", "environment"),
    [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})],
)
def test_other_shells_complete(shell: str, environment: dict[str, str]) -> None:
    """Zsh and fish get the candidates with what they do."""
    assert "_UNLATENT_COMPLETE" in run({"_UNLATENT_COMPLETE": f"source_{shell}"})
    offered = run(
        {
            "_UNLATENT_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": "unlatent review re",
            **environment,
        }
    )
    assert "Give a claimed image back" in offered
    assert {"release", "request"} <= set(re.findall(r"\w+", offered))
    assert "extend" not in offered


def test_no_color_means_no_colour() -> None:
    """Where colours are forced, `NO_COLOR` leaves none (https://no-color.org)."""
    colour = re.compile(r"\x1b\[[\d;]*(?:3[0-7]|9[0-7]|38|48)[\d;]*m")
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert colour.search(run(forced, "--help"))
    assert not colour.search(run({**forced, "NO_COLOR": "1"}, "--help"))


def run(environment: dict[str, str], *arguments: str) -> str:
    """Run the installed program and return what it prints."""
    ours = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.run(
        [UNLATENT, *arguments],
        env=ours | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
