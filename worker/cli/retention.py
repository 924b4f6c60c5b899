"""`unlatent link`, `evidence`, `retain`, `holds`, `export`: what is kept.

Holds are a lead's, who points UNLATENT_POSTGRES__MODERATOR_URL at a login of their own; the others
are an operator's.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.cli.common import queries
from worker.cli.common.options import Image, Limit, Why
from worker.cli.common.rows import Format, FormatOption
from worker.storage.interface import parse_uri

if TYPE_CHECKING:
    from worker.storage.s3 import S3Storage

commands = typer.Typer()
holds = typer.Typer(no_args_is_help=True, help="List, place and lift legal holds.")
export = typer.Typer(no_args_is_help=True, help="Write what others ask for, in their formats.")
commands.add_typer(holds, name="holds")
commands.add_typer(export, name="export")

Minutes = Annotated[int, typer.Option(help="How long links work.", min=1)]

#: A moment as `--since` and `--until` take it.
_MOMENT = "%Y-%m-%dT%H:%M:%S"


@commands.command()
def link(context: typer.Context, image: Image, minutes: Minutes = 10) -> None:
    """Print links to the picture and its evidence that open in a browser for a while."""
    from sqlalchemy import text

    from worker.storage.s3 import S3Storage

    storage = S3Storage(cli.of(context).settings().s3)
    with queries.engine(context) as engine, engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT i.bucket, i.key, v.evidence_uri, i.erased_at, i.object_removed_at "
                "FROM app.images i "
                "LEFT JOIN app.verdicts v ON v.image_id = i.id AND v.evidence_uri IS NOT NULL "
                "WHERE i.id = :image ORDER BY v.scored_at DESC NULLS LAST LIMIT 1"
            ),
            {"image": image},
        ).one_or_none()
    if row is None:
        raise SettingsError(f"no image {image}")
    if row.erased_at is not None:
        raise SettingsError(f"image {image} was deleted on request")
    if row.object_removed_at is None:
        typer.echo(storage.presign(row.bucket, row.key, expires_s=60 * minutes))
    else:
        typer.echo(f"the picture was removed after its time, at {row.object_removed_at}", err=True)
    if row.evidence_uri is not None:
        _print_links(storage, row.evidence_uri, minutes)


@commands.command()
def evidence(
    context: typer.Context,
    image: Image,
    minutes: Minutes = 10,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write it as one picture instead.")
    ] = None,
) -> None:
    """Print links to an image's evidence, making and keeping it first where there is none."""
    from worker.models.evidence_on_demand import render_evidence
    from worker.storage.s3 import S3Storage

    settings = cli.of(context).settings()
    storage = S3Storage(settings.s3)
    with queries.engine(context) as engine:
        uri = render_evidence(image, settings=settings, engine=engine, storage=storage)
    if save is None:
        _print_links(storage, uri, minutes)
    else:
        _save(storage, uri, save)


def _print_links(storage: S3Storage, uri: str, minutes: int) -> None:
    from worker.scoring.evidence import stored_keys

    bucket, _ = parse_uri(uri)
    for key in stored_keys(storage, uri):
        typer.echo(storage.presign(bucket, key, expires_s=60 * minutes))


def _save(storage: S3Storage, uri: str, file: Path) -> None:
    from detection.evidence import flat_picture
    from worker.scoring.evidence import FLAT, load_evidence

    files = load_evidence(storage, uri)
    picture = files[FLAT] if FLAT in files else flat_picture(files)
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise SettingsError(f"--save {file}: {error.strerror}") from error


@commands.command()
def retain(
    context: typer.Context,
    erase: Annotated[UUID | None, typer.Option(help="Ask for this image's deletion first.")] = None,
    reason: Annotated[str, typer.Option(help="Why it is deleted.")] = "on request",
) -> None:
    """Remove what is older than the settings keep, and finish requested deletions, to the end."""
    from worker.moderation import retention
    from worker.retraining.erasure import SnapshotShards
    from worker.storage.s3 import S3Storage, open_storage

    settings = cli.of(context).settings()
    with queries.engine(context, pool_size=retention.CONCURRENCY) as engine:
        if erase is not None:
            retention.request_erasure(engine, erase, reason=reason)
        shards = SnapshotShards(engine, open_storage(settings), settings.training.bucket)
        storage = S3Storage(settings.s3)
        job = retention.RetentionJob(
            engine,
            storage,
            settings.retention,
            shards=shards,
            evidence_bucket=settings.moderation.evidence_bucket,
        )
        begun = time.monotonic()
        done = job.run()
    took_s = max(time.monotonic() - begun, 0.001)
    rate = (done.erased + done.originals + done.evidence) / took_s
    typer.echo(
        f"{done.erased} erased, {done.originals} originals, {done.evidence} evidence "
        f"in {took_s:.1f} s ({rate:.1f}/s)"
    )
    if done.failed:
        typer.echo(f"{done.failed} could not be removed: the log says why of each", err=True)
        raise typer.Exit(1)


@holds.command("list")
def list_holds(
    context: typer.Context, limit: Limit = 100, format_: FormatOption = Format.TABLE
) -> None:
    """List the legal holds that stand, the oldest first."""
    queries.print_rows(
        context,
        "SELECT hold_id, image_id, source, placed_at, placed_by, reason FROM moderation.holds "
        "WHERE lifted_at IS NULL ORDER BY hold_id LIMIT :limit",
        {"limit": limit},
        format_=format_,
    )


@holds.command()
def place(
    context: typer.Context, image: Image, reason: Why, format_: FormatOption = Format.TABLE
) -> None:
    """Keep an image and its evidence, against retention and erasure, until the hold is lifted."""
    query = "SELECT moderation.place_hold(:image, :reason) AS hold_id"
    queries.print_rows(context, query, {"image": image, "reason": reason}, format_=format_)


@holds.command()
def lift(
    context: typer.Context, image: Image, reason: Why, format_: FormatOption = Format.TABLE
) -> None:
    """Lift the legal hold on an image: retention and erasure may go on."""
    query = "SELECT moderation.lift_hold(:image, :reason) AS lifted"
    queries.print_rows(context, query, {"image": image, "reason": reason}, format_=format_)


@export.command()
def dsa(
    context: typer.Context,
    since: Annotated[datetime, typer.Option(help="Restrictions that began from then on (UTC).")],
    until: Annotated[
        datetime | None, typer.Option(help="And before then (UTC); 15 minutes ago unless given.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the files go, one a call of the API.")
    ] = Path("dsa"),
) -> None:
    """Write statements of reasons for the DSA Transparency Database, 100 a file; send nothing."""
    from worker.moderation.dsa_statements import calls, latest_end

    settings = cli.of(context).settings().dsa
    begins = since.replace(tzinfo=UTC)
    count = files = 0
    with queries.engine(context) as engine:
        latest = latest_end(engine)
        ends = latest if until is None else until.replace(tzinfo=UTC)
        if ends > latest:
            raise typer.BadParameter(
                f"--until {ends:{_MOMENT}}: at most {latest:{_MOMENT}}, a quarter of an hour ago, "
                "because what is being decided would be in no export"
            )
        if begins > ends:
            raise typer.BadParameter(f"--since {begins:{_MOMENT}}: after {ends:{_MOMENT}}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise SettingsError(f"--out {out}: not empty; old statements would be sent again")
            for call in calls(engine, settings, since=begins, until=ends):
                files += 1
                count += len(call["statements"])
                body = json.dumps(call, indent=1)
                (out / f"statements-{files:05d}.json").write_text(body + "\n")
        except OSError as error:
            raise SettingsError(f"--out {out}: {error.strerror}") from error
    typer.echo(f"{count} statements of reasons in {files} files in {out}")
    typer.echo(f"the next export: --since {ends:{_MOMENT}}")
