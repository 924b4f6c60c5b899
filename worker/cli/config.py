"""`unlatent config`: the settings in force."""

from __future__ import annotations

import typer

from worker.cli import context as cli
from worker.cli.common.rows import Format, FormatOption, print_fields

commands = typer.Typer()


@commands.command()
def config(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """Print every setting in force under its environment name, secrets masked."""
    from worker.settings import in_force

    print_fields(in_force(cli.of(context).settings()), format_, line="{name}={value}")
