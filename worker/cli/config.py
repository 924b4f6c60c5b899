"""`unlatent config`: the settings in force."""

from __future__ import annotations

import typer

from worker.cli import context as cli
from worker.settings import in_force

commands = typer.Typer()


@commands.command()
def config(context: typer.Context) -> None:
    """Print every setting in force under its environment name, secrets masked."""
    chosen = cli.of(context)
    env_file = chosen.stack_in_use()
    if env_file is not None:
        typer.echo(f"# addresses of the local stack in {chosen.stack_folder}")
    for name, value in in_force(chosen.settings()).items():
        typer.echo(f"{name}={value}")
