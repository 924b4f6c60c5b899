"""Long-running processes: `unlatent worker`, `bridge`, `beat`, `trainer`, `console`, `serve`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.queue import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.settings import Settings

commands = typer.Typer()


@contextmanager
def _start_step(name: str) -> Iterator[None]:
    # Not imported with the command line: help needs no logs.
    from worker.telemetry.start_steps import start_step

    with start_step(name):
        yield


def _configure_logs(settings: Settings) -> None:
    from worker.telemetry.logs import configure

    configure(settings.observability)


@commands.command()
def worker(
    context: typer.Context,
    queues: Annotated[
        str, typer.Option(help="Queues to take messages from, the most urgent first.")
    ] = ",".join(names.QUEUES),
) -> None:
    """Check images until told to stop; SIGTERM ends what is under way first."""
    settings = cli.of(context).settings()
    wanted = [name.strip() for name in queues.split(",") if name.strip()]
    unknown = sorted(set(wanted) - set(names.QUEUES))
    if unknown or not wanted:
        message = f"--queues {queues!r}: choose from {', '.join(names.QUEUES)}"
        raise SettingsError(message)
    _configure_logs(settings)
    with _start_step("imports"):
        from worker.processes.worker import run_worker
    raise typer.Exit(run_worker(settings, queues=wanted))


@commands.command()
def bridge(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="This bridge's own.", show_default="host and process")
    ] = None,
    sqs: Annotated[
        str | None,
        typer.Option(help="URL of an SQS queue.", show_default="the ingest list of Redis"),
    ] = None,
) -> None:
    """Move uploads from the ingest list to the ledger and the queue, until SIGTERM."""
    settings = cli.of(context).settings()
    _configure_logs(settings)
    with _start_step("imports"):
        from worker.processes.bridge import run_bridge
    run_bridge(settings, name=name, sqs=sqs)


@commands.command()
def beat(context: typer.Context) -> None:
    """Send the scheduled messages; run exactly one of these."""
    settings = cli.of(context).settings()
    _configure_logs(settings)
    with _start_step("imports"):
        from worker.processes.beat import run_beat
    run_beat(settings)


@commands.command()
def trainer(context: typer.Context) -> None:
    """Take training runs, one at a time, until told to stop."""
    settings = cli.of(context).settings()
    _configure_logs(settings)
    with _start_step("imports"):
        from worker.processes.trainer import run_trainer
    raise typer.Exit(run_trainer(settings))


@commands.command()
def console(context: typer.Context) -> None:
    """Serve the moderators' pages, until SIGTERM."""
    settings = cli.of(context).settings()
    _configure_logs(settings)
    with _start_step("imports"):
        from worker.processes.console import run_console
    typer.echo(f"http://{settings.console.host}:{settings.console.port}/", err=True)
    run_console(settings)


@commands.command()
def serve(context: typer.Context) -> None:
    """Answer checks over HTTP, and with UNLATENT_HTTP__LEDGER take uploads, until SIGTERM.

    `POST /v1/check` needs neither Postgres nor Redis: docs/api.md.
    """
    settings = cli.of(context).settings()
    _configure_logs(settings)
    with _start_step("imports"):
        from worker.processes.serve import run_serve
    typer.echo(f"http://{settings.http.host}:{settings.http.port}/v1/check", err=True)
    run_serve(settings)


@commands.command("new-key")
def make_key() -> None:
    """Print a new bearer key for `unlatent serve`, and the digest that its setting takes.

    The key is shown once and kept nowhere.
    """
    from worker.serving.keys import new_key

    key, digest = new_key()
    typer.echo(f"key     {key}\ndigest  {digest}")
