"""`unlatent submit`, `rejected`, `reconcile`, `retry`, `rescore`: how uploads enter again."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.cli.common.rows import Format, FormatOption, print_rows

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.ledger.postgres import PostgresLedger
    from worker.queue.publisher import CeleryPublisher
    from worker.settings import Settings
    from worker.storage.interface import ObjectFacts, Storage

commands = typer.Typer()

Since = Annotated[datetime, typer.Option(help="UTC, for example 2026-01-31T12:00:00.")]
S3_SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class Services:
    """What these commands work with, built from the settings of one invocation."""

    settings: Settings
    engine: Engine
    ledger: PostgresLedger
    publisher: CeleryPublisher
    storage: Storage


def _services(context: typer.Context) -> Services:
    from worker.database.engine import build_engine
    from worker.ledger.postgres import PostgresLedger
    from worker.queue.app import build_app
    from worker.queue.publisher import CeleryPublisher
    from worker.storage.s3 import S3Storage

    settings = cli.of(context).settings()
    engine = build_engine(settings.postgres, application_name="unlatent-cli")
    ledger = PostgresLedger(engine)
    return Services(
        settings=settings,
        engine=engine,
        ledger=ledger,
        publisher=CeleryPublisher(build_app(settings), ledger),
        storage=S3Storage(settings.s3),
    )


@commands.command()
def submit(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A file, or s3://bucket/key.", metavar="FILE|S3")],
    source: Annotated[str, typer.Option(help="Where the upload comes from.")] = "cli",
    priority: Annotated[bool, typer.Option(help="Check it before others.")] = False,
) -> None:
    """Have an image checked; prints its id. A file is uploaded to the first bucket."""
    from worker.client import Client

    services = _services(context)
    facts = _stored(what, services)
    settings = services.settings
    with Client(
        redis_url=settings.redis.url.get_secret_value(),
        postgres_url=settings.postgres.url.get_secret_value(),
        key_prefix=settings.redis.key_prefix,
        ingest_key=settings.redis.ingest_key,
    ) as client:
        image_id = client.submit(
            bucket=facts.bucket,
            key=facts.key,
            etag=facts.etag,
            version_id=facts.version_id,
            source=source,
            priority=priority,
        )
    typer.echo(image_id)


def _stored(what: str, services: Services) -> ObjectFacts:
    """Ask for the object that `what` names, uploading it first when it is a file.

    A file whose name would be refused is not uploaded.
    """
    from worker.ingest.events import EventFieldInvalid, reason_to_ignore

    if what.startswith(S3_SCHEME):
        bucket, _, key = what.removeprefix(S3_SCHEME).partition("/")
        if not key:
            raise SettingsError(f"{what} names no object: s3://bucket/key")
        return services.storage.head(bucket, key)
    path = Path(what)
    if (reason := reason_to_ignore(path.name)) is not None:
        raise EventFieldInvalid(f"{path.name!r} is not the name of an image ({reason})")
    try:
        body = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{what} cannot be read: {error.strerror}") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    # A name of its own: two files of one name are two uploads.
    key = f"submitted/{uuid4()}/{path.name}"
    return services.storage.put(services.settings.s3.buckets[0], key, body, content_type=kind)


@commands.command()
def rejected(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 20,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List what the bridge refused, the newest first: when, why, and the entry's beginning."""
    import redis

    from worker.ingest.rejected import read_rejected
    from worker.queue.publisher import QueueUnavailable

    settings = cli.of(context).settings().redis
    try:
        with redis.Redis.from_url(settings.url.get_secret_value(), socket_timeout=5) as client:
            notes = read_rejected(client, settings, limit=limit)
    except redis.RedisError as error:
        raise QueueUnavailable(f"Redis does not answer: {error}") from error
    print_rows(notes, ("at", "reason", "error", "entry"), format_)


@commands.command()
def reconcile(
    context: typer.Context,
    since: Since,
    bucket: Annotated[str, typer.Option(help="One of the buckets of the settings.")],
) -> None:
    """List a bucket and add what the ledger lacks."""
    from worker.ingest.reconcile import reconcile

    services = _services(context)
    counts = reconcile(
        bucket,
        since=_utc(since),
        storage=services.storage,
        ledger=services.ledger,
        publisher=services.publisher,
    )
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.ignored.items()))
    typer.echo(
        f"listed {counts.listed}, added {counts.added}, known {counts.known}, "
        f"ignored {sum(counts.ignored.values())}{reasons and f' ({reasons})'}, "
        f"published {counts.published}"
    )


@commands.command()
def retry(
    context: typer.Context,
    reason: Annotated[str, typer.Option(help="The reason of failed or quarantined rows.")],
    since: Since,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 10_000,
) -> None:
    """Check failed or quarantined images of one reason again."""
    services = _services(context)
    reopened = services.ledger.reopen(reason=reason, since=_utc(since), limit=limit)
    typer.echo(f"reopened {services.publisher.publish(reopened)}")


@commands.command()
def rescore(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Digest of a registered model.", show_default="the champion")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Uploads since then, UTC.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 10_000,
) -> None:
    """Queue scored images that the model has not judged, for the workers that run it."""
    from worker.models.registry import ModelsRegistry

    services = _services(context)
    registry = ModelsRegistry(services.engine)
    wanted = registry.champion() if model is None else registry.find(model)
    if wanted is None:
        raise SettingsError("no model is champion yet: name one with --model")
    chosen = services.ledger.rescorable(
        model_version=wanted.digest, since=since and _utc(since), limit=limit
    )
    typer.echo(f"queued {services.publisher.publish_rescore(chosen)} for {wanted.name}")


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)
