"""`unlatent moderators`: who may moderate which sources."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.common import queries
from worker.cli.common.rows import Format, FormatOption, print_rows

commands = typer.Typer()
moderators = typer.Typer(no_args_is_help=True, help="Who may moderate which sources.")
commands.add_typer(moderators, name="moderators")


@moderators.command()
def allow(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A login that is a member of role moderator.")],
    source: Annotated[list[str] | None, typer.Option(help="Only these; else every one.")] = None,
    lead: Annotated[bool, typer.Option("--lead", help="May overturn, hold and erase.")] = False,
    sso: Annotated[
        bool, typer.Option("--sso", help="Comes by single sign-on, under this name; has no login.")
    ] = False,
) -> None:
    """Let somebody moderate."""
    from worker.moderation import moderators as people

    with queries.engine(context, as_operator=True) as engine:
        people.allow(engine, name, sources=source, lead=lead, sso=sso)
        if not people.idling_is_limited(engine):
            database = engine.url.database
            typer.echo(
                "nothing ends a moderator's idle transaction, which may hold up the service: run "
                f"`psql --file worker/bootstrap.sql {database}` once more (docs/moderators.md)",
                err=True,
            )


@moderators.command()
def disallow(
    context: typer.Context, name: Annotated[str, typer.Argument(help="The moderator.")]
) -> None:
    """Let a moderator see nothing any more."""
    from worker.moderation import moderators as people

    with queries.engine(context, as_operator=True) as engine:
        typer.echo("done" if people.disallow(engine, name) else f"{name} was no moderator")


@moderators.command("list")
def list_moderators(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """List who may moderate what."""
    from worker.moderation import moderators as people

    with queries.engine(context, as_operator=True) as engine:
        grants = people.source_grants(engine)
    everything = "every source" if format_ is Format.TABLE else None
    rows = [
        {
            "moderator": one.moderator,
            "sources": everything if one.sources is None else one.sources,
            "lead": one.lead,
        }
        for one in grants
    ]
    print_rows(rows, ("moderator", "sources", "lead"), format_)
