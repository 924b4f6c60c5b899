"""`unlatent config`: the settings in force."""

from __future__ import annotations

import typer

from worker.cli import context as cli
from worker.settings import in_force

commands = typer.Typer()


@commands.command()
def config(context: typer.Context) -> None:
    """Print every setting in force under its environment name, secrets masked."""
    for name, value in in_force(cli.of(context).settings()).items():
        typer.echo(f"{name}={value}")
