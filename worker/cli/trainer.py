"""`unlatent trainer`: the process that takes training runs from their queue."""

from __future__ import annotations

import typer

from worker.cli import context as cli

commands = typer.Typer()


@commands.command()
def trainer(context: typer.Context) -> None:
    """Take training runs, one at a time, until told to stop."""
    settings = cli.of(context).settings()
    from worker.processes.trainer import run_trainer
    from worker.telemetry.logs import configure

    configure(settings.observability)
    raise typer.Exit(run_trainer(settings))
