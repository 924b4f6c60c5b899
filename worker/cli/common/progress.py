"""Shows on standard error how far work is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import TaskID

    #: Called with the part of the work, how much of it is done and how much there is.
    Report = Callable[[str, int, int], None]

#: Lines of one part of the work where there is no terminal, beside its first.
LINES = 10


@contextmanager
def show_progress() -> Iterator[Report]:
    """Yield a function that shows how far a part of the work is.

    A terminal gets a bar for each part, until the block ends. Elsewhere a part gets a line when it
    begins and one at each tenth.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield _lines()


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def report(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part, total=total)
            progress.update(tasks[part], completed=done)

        yield report


def _lines() -> Report:
    shown: dict[str, int] = {}

    def report(part: str, done: int, total: int) -> None:
        tenth = LINES * done // max(total, 1)
        if shown.get(part) != tenth:
            shown[part] = tenth
            typer.echo(f"{part}: {done} of {total}", err=True)

    return report
