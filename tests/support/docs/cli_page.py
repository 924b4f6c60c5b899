"""The page docs/cli.md, made from the commands of the code.

`python -m tests.support.docs.cli_page` writes it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

from worker.cli import EXIT_CODES, build_app

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"

_HEAD = """# The command line

`unlatent COMMAND --help` (or `-h`) prints what this page says, `unlatent --version` the version.
Addresses come from the environment; when it names none of them, from the local stack that
`unlatent up` started, if it runs.

* **Formats.** A command with `--format` prints its rows as a `table`, as one `json` array, as
  `jsonl` (one object a line) or as `csv`. Times are UTC, in ISO 8601 except in a table. In CSV a
  text that a spreadsheet would calculate gets an apostrophe before it. Remarks and errors go to
  standard error.
* **Progress.** Long work shows bars when standard error is a terminal, plain lines elsewhere.
* **Colours.** Only on a terminal, and none where the environment has `NO_COLOR`.
* **Completion.** `unlatent --install-completion` sets up the shell that runs it: bash, zsh or fish.
  `unlatent --show-completion` prints the script instead.

## Exit codes

| code | meaning |
| --- | --- |
"""
_OPTIONS = "| option | meaning |\n| --- | --- |\n"
_ARGUMENTS = "| argument | meaning |\n| --- | --- |\n"


def render() -> str:
    """Return the page: the conventions, the exit codes, then every command in its order."""
    application = typer.main.get_command(build_app())
    codes = "".join(f"| {code} | {_cell(meaning)} |\n" for code, meaning in EXIT_CODES.items())
    own = f"## Options before the command\n\n{_tables(application)}"
    return "\n".join(
        [
            _HEAD + codes,
            own,
            *(_section(command, words) for words, command in commands(application)),
        ]
    )


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group below one, with the words that lead there."""
    for name, below in getattr(command, "commands", {}).items():
        yield (*path, name), below
        yield from commands(below, (*path, name))


def _section(command: Any, words: tuple[str, ...]) -> str:
    usage = " ".join(["unlatent", *words, *command.collect_usage_pieces(_context(command))])
    heading = f"{'#' * (len(words) + 1)} `unlatent {' '.join(words)}`"
    text = inspect.cleandoc(command.help or "")
    parts = [heading, f"```\n{usage}\n```", text, _tables(command).rstrip("\n")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables(command: Any) -> str:
    """Return a table of the arguments and one of the options, where a command has any."""
    tables = []
    for kind, header in (("argument", _ARGUMENTS), ("option", _OPTIONS)):
        records = [
            parameter.get_help_record(_context(command))
            for parameter in command.params
            if parameter.param_type_name == kind
        ]
        rows = [f"| `{_cell(name)}` | {_cell(text)} |\n" for name, text in filter(None, records)]
        if rows:
            tables.append(header + "".join(rows))
    return "\n".join(tables)


def _context(command: Any) -> Any:
    return command.make_context("unlatent", [], resilient_parsing=True)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
