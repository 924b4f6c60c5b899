"""`unlatent webhooks`: what the platform is told, and what it did not take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from worker.cli import context as cli
from worker.cli.common import queries
from worker.cli.common.options import Limit
from worker.cli.common.rows import Format, FormatOption, print_rows

commands = typer.Typer()
webhooks = typer.Typer(no_args_is_help=True, help="Send, inspect and replay webhooks.")
commands.add_typer(webhooks, name="webhooks")


@webhooks.command()
def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Send what is due and stop.")] = False,
) -> None:
    """Send webhooks as they come due, until stopped."""
    from worker.moderation.notifications import OUTBOX, listen
    from worker.moderation.webhooks import Dispatcher

    settings = cli.of(context).settings()
    with queries.engine(context) as engine:
        dispatcher = Dispatcher(engine, settings.webhooks)
        dispatcher.give_up_unknown()
        if once:
            typer.echo(f"{dispatcher.send_due()} delivered")
            return
        typer.echo(f"sending to {', '.join(dispatcher.endpoints)}")
        # Back-offs end without a notification: look again at least that often.
        for _ in listen(
            settings.postgres.url.get_secret_value(),
            [OUTBOX],
            timeout_s=settings.webhooks.backoff_s,
        ):
            dispatcher.wake()


@webhooks.command()
def on(
    context: typer.Context,
    endpoint: Annotated[
        str, typer.Argument(help="main, or a name of UNLATENT_WEBHOOKS__ENDPOINTS.")
    ],
) -> None:
    """Send to an endpoint again that was switched off because it took nothing."""
    from worker.moderation.webhooks import switch_on

    with queries.engine(context) as engine:
        found = switch_on(engine, endpoint)
    typer.echo(
        f"{endpoint} is on; `unlatent webhooks replay --dead` sends what it missed"
        if found
        else f"{endpoint} was not switched off"
    )


@webhooks.command()
def dead(context: typer.Context, limit: Limit = 100, format_: FormatOption = Format.TABLE) -> None:
    """Count the outbox and list the messages that were given up."""
    from worker.moderation.webhooks import dead_letters, outbox_counts

    with queries.engine(context) as engine:
        counts = outbox_counts(engine)
        letters = dead_letters(engine, limit=limit)
    # Beside rows that a program reads, the counts are a remark.
    remark = format_ is not Format.TABLE
    typer.echo(" ".join(f"{name}={count}" for name, count in counts.items()), err=remark)
    columns = ("message_id", "endpoint", "topic", "attempts", "last_error")
    print_rows(
        [{name: getattr(one, name) for name in columns} for one in letters], columns, format_
    )


@webhooks.command()
def replay(
    context: typer.Context,
    message: Annotated[list[int] | None, typer.Option(help="These messages.")] = None,
    hours: Annotated[float | None, typer.Option(help="All of this many past hours.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
) -> None:
    """Send messages again; receivers know them by their id."""
    from worker.moderation import webhooks as sending

    since = None if hours is None else datetime.now(UTC) - timedelta(hours=hours)
    with queries.engine(context) as engine:
        count = sending.replay(engine, message_ids=message or (), since=since, dead=dead)
    typer.echo(f"{count} will be sent again")
