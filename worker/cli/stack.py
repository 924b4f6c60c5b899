"""`unlatent up`, `down`, `status`, `migrate`: the local services and the database's schema."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.text import escape_controls, mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.localstack import LocalStack
    from worker.settings import Settings

commands = typer.Typer()

#: Where the local stack keeps evidence unless the settings name another bucket.
EVIDENCE_BUCKET = "evidence"
#: How often it is looked whether everything still runs, in seconds.
WATCH_S = 0.5
NEWER = "the schema is of a newer release and stays as it is"


@commands.command()
def up(
    context: typer.Context,
    console: Annotated[
        bool, typer.Option("--console", help="Start the moderators' console as well.")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Run worker, bridge, beat, serve and console as well, until Ctrl-C or `down`.",
        ),
    ] = False,
) -> None:
    """Start PostgreSQL, Redis and S3 on this machine and migrate the database.

    A moderator's login and a bucket for evidence are made, too, so that every command works.
    """
    from worker.database.engine import migrate
    from worker.localstack.identity import DATABASE, MODERATOR
    from worker.localstack.processes import LOOPBACK
    from worker.moderation.sql_settings import write_sql_settings
    from worker.settings import load_settings

    chosen = cli.of(context)
    stack = chosen.local_stack()
    if everything:
        _refuse_second(stack)
    settings = load_settings()
    evidence = settings.moderation.evidence_bucket or EVIDENCE_BUCKET
    buckets = tuple(dict.fromkeys((*settings.s3.buckets, evidence)))
    stack.start(
        buckets=(*buckets, settings.training.bucket),
        settings={
            cli.BUCKETS: json.dumps(buckets),
            cli.EVIDENCE_BUCKET: evidence,
        },
    )
    with _stopping(stack) if everything else nullcontext():
        current = migrate(stack.addresses.owner_url())
        write_sql_settings(stack.addresses.owner_url(), load_settings(stack.addresses.env_file))
        _allow_moderator(stack)
        for server in stack.servers:
            typer.echo(f"{server.name:<9} {LOOPBACK}:{server.port}")
        typer.echo(f"buckets   {', '.join(buckets)}; evidence is kept in {evidence}")
        typer.echo(f"moderator {MODERATOR}: verdicts, review, reasons … ask as it; in SQL:")
        passwords = shlex.quote(str(chosen.stack_folder / stack.addresses.password_file.name))
        typer.echo(
            f"          PGPASSFILE={passwords} psql -h {LOOPBACK} -p {stack.postgres.port} "
            f"-U {MODERATOR} {DATABASE}"
        )
        typer.echo(f"addresses {stack.addresses.env_file} (with passwords)")
        if not current:
            typer.echo(NEWER, err=True)
        given = stack.addresses.pointed_here(settings, buckets=buckets, evidence=evidence)
        if everything:
            _run_everything(stack, given)
        elif console:
            stack.start_commands(given, stack.console)
            _tell_of_console(stack)


def _refuse_second(stack: LocalStack) -> None:
    if any(command.running for command in stack.commands):
        raise SettingsError(
            f"the service in {stack.folder} runs already: `unlatent status` shows it,"
            " `unlatent down` ends it"
        )


def _tell_of_console(stack: LocalStack) -> None:
    from worker.localstack.identity import MODERATOR

    typer.echo(f"console   {stack.console.address}")
    typer.echo(f"          sign in as {MODERATOR}, password {stack.addresses.moderator_password()}")


def _run_everything(stack: LocalStack, settings: Settings) -> None:
    """Run the service over the stack until `down`, or until an exception ends it."""
    stack.start_commands(settings, *stack.commands)
    _tell_of_console(stack)
    typer.echo("worker    is loading its model, serve too; Ctrl-C stops everything, data stay")
    news: dict[str, Callable[[], bool]] = {
        "worker    takes uploads": lambda: stack.worker.up,
        f"serve     answers POST {stack.serve.address}v1/check": lambda: stack.serve.answers,
    }
    while stack.check():
        for line in [line for line, happened in news.items() if happened()]:
            typer.echo(line)
            del news[line]
        time.sleep(WATCH_S)
    typer.echo("stopped")


@contextmanager
def _stopping(stack: LocalStack) -> Iterator[None]:
    """Stop all of the stack when anything but its own end ends the block: Ctrl-C, an error."""
    from worker.localstack.processes import LocalStackError, ServerEnded

    try:
        yield
    except BaseException as error:
        asked = isinstance(error, SystemExit)
        if asked:
            _tell("stopping")
        for line in error.last_lines if isinstance(error, ServerEnded) else ():
            _tell(escape_controls(mask(line)), err=True)
        try:
            stack.stop()
        except LocalStackError as problem:
            if asked:  # else what went wrong first says more
                _tell(f"unlatent: {problem}", err=True)
        else:
            if asked:
                _tell("stopped")
        raise


def _tell(text: str, *, err: bool = False) -> None:
    """Say something to whoever still listens: a pipe may have no reader, a terminal be closed."""
    try:
        typer.echo(text, err=err)
    except OSError:
        # What is left in the buffer must not fail once more when the process ends.
        stream = sys.stderr if err else sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _allow_moderator(stack: LocalStack) -> None:
    from worker.database.engine import connect
    from worker.localstack.identity import MODERATOR
    from worker.moderation.moderators import allow

    engine = connect(stack.addresses.database_url(), application_name="unlatent-cli")
    try:
        allow(engine, MODERATOR, sources=None, lead=True)
    finally:
        engine.dispose()


@commands.command()
def down(
    context: typer.Context,
    delete: Annotated[bool, typer.Option("--delete", help="Remove all its data as well.")] = False,
) -> None:
    """Stop the local services; data stays unless --delete is given."""
    chosen = cli.of(context)
    stack = chosen.local_stack()
    if not stack.exists and not (delete and stack.folder.exists()):
        typer.echo(f"no local stack in {chosen.stack_folder}")
        return
    stack.stop()
    if not delete:
        typer.echo("stopped")
        return
    left = stack.delete()
    typer.echo("stopped and deleted")
    if left:
        typer.echo(f"{chosen.stack_folder} stays, with what is not ours: {', '.join(left)}")


@commands.command()
def status(context: typer.Context) -> None:
    """Say which local services run; exit code 1 when one of them does not.

    Warns of a model whose thresholds were not measured on files as this release reads them.
    """
    from worker.localstack.commands import WebServer
    from worker.settings import load_settings

    chosen = cli.of(context)
    stack = chosen.local_stack()
    if not stack.exists:
        typer.echo(f"no local stack in {chosen.stack_folder}: `unlatent up` starts one")
        raise typer.Exit(1)
    for server in stack.servers:
        process = server.process
        state = "stopped" if process is None else f"127.0.0.1:{server.port} pid {process.pid}"
        typer.echo(f"{server.name:<9} {state}")
    for command in stack.commands:
        if (process := command.process) is not None:
            address = f" {command.address}" if isinstance(command, WebServer) else ""
            typer.echo(f"{command.name:<9} pid {process.pid}{address}")
    if not stack.running:
        raise typer.Exit(1)
    settings = load_settings(stack.addresses.env_file)
    _tell_of_uploads(settings)
    _warn_of_thresholds(settings)


def _tell_of_uploads(settings: Settings) -> None:
    """Say how many uploads wait, how many events were refused, and when the last verdict came."""
    import redis
    from sqlalchemy import text

    from worker.database.engine import build_engine, transaction
    from worker.ingest.rejected import rejected_key

    engine = build_engine(settings.postgres, application_name="unlatent-cli")
    try:
        with transaction(engine) as connection:
            waiting = connection.execute(
                text("SELECT count(*) FROM app.images WHERE state = 'pending'")
            ).scalar()
            last = connection.execute(text("SELECT max(scored_at) FROM app.verdicts")).scalar()
    finally:
        engine.dispose()
    keys = settings.redis
    with redis.Redis.from_url(keys.url.get_secret_value()) as client:
        announced = client.llen(f"{keys.key_prefix}{keys.ingest_key}")
        refused = client.llen(rejected_key(keys))
    when = "no verdict yet" if last is None else f"last verdict {last:%Y-%m-%d %H:%M:%S %Z}"
    typer.echo(f"uploads   {announced} announced, {waiting} waiting, {refused} refused; {when}")
    if refused:
        typer.echo("          `unlatent rejected` lists what was refused, and why")


def _warn_of_thresholds(settings: Settings) -> None:
    from worker.database.engine import build_engine
    from worker.models.loading import threshold_warnings
    from worker.models.registry import ModelsRegistry

    engine = build_engine(settings.postgres, application_name="unlatent-cli")
    try:
        warnings = threshold_warnings(settings, ModelsRegistry(engine))
    finally:
        engine.dispose()
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


@commands.command()
def migrate(context: typer.Context) -> None:
    """Bring the database's schema to the newest revision, and tell it the settings it needs."""
    from sqlalchemy import exc

    from worker.database.engine import migrate as migrate_schema
    from worker.moderation.sql_settings import write_sql_settings

    settings = cli.of(context).settings()
    url = settings.postgres.owner_url
    if url is None:
        raise SettingsError("UNLATENT_POSTGRES__OWNER_URL is not set: the owner's login migrates")
    try:
        current = migrate_schema(url.get_secret_value())
        write_sql_settings(url.get_secret_value(), settings)
    except exc.OperationalError as error:
        message = str(error.orig).splitlines()[0]
        raise SettingsError(f"UNLATENT_POSTGRES__OWNER_URL: {message}") from error
    typer.echo("the schema is current" if current else NEWER)
