"""`unlatent verdicts`, `review`, `decide`, `appeals`, `policy`, `link`, `webhooks`: no SQL needed.

Moderators point UNLATENT_POSTGRES__URL at their own login: the database knows them by it.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Engine

commands = typer.Typer()
appeals = typer.Typer(no_args_is_help=True, help="Open, list and close appeals.")
policy = typer.Typer(no_args_is_help=True, help="Try and set thresholds; resume flagging.")
webhooks = typer.Typer(no_args_is_help=True, help="Send, inspect and replay webhooks.")
moderators = typer.Typer(no_args_is_help=True, help="Who may moderate which sources.")
commands.add_typer(appeals, name="appeals")
commands.add_typer(policy, name="policy")
commands.add_typer(webhooks, name="webhooks")
commands.add_typer(moderators, name="moderators")

Source = Annotated[str | None, typer.Option(help="Only this source.")]
Limit = Annotated[int, typer.Option(help="At most so many.", min=1)]
Note = Annotated[str | None, typer.Option(help="Free text for the record.")]
Why = Annotated[str, typer.Option(help="Why, for the record.")]


@commands.command()
def verdicts(
    context: typer.Context,
    image: Annotated[UUID | None, typer.Option(help="The whole history of this image.")] = None,
    source: Source = None,
    label: Annotated[str | None, typer.Option(help="real, generated or unsure.")] = None,
    tier: Annotated[str | None, typer.Option(help="allow, review, flag or flag_high.")] = None,
    limit: Limit = 20,
) -> None:
    """List current verdicts, newest first, or the history of one image."""
    if image is not None:
        query = (
            "SELECT at, event, actor, summary FROM moderation.image_history WHERE image_id = :image"
        )
    else:
        query = (
            "SELECT image_id, scored_at, source, label, round(score::numeric, 4) AS score, tier, "
            "decision FROM moderation.verdicts "
            "WHERE (CAST(:source AS text) IS NULL OR source = :source) "
            "AND (CAST(:label AS text) IS NULL OR label = :label) "
            "AND (CAST(:tier AS text) IS NULL OR tier = :tier) LIMIT :limit"
        )
    values = {"image": image, "source": source, "label": label, "tier": tier, "limit": limit}
    _show(context, query, values)


@commands.command()
def quality(context: typer.Context) -> None:
    """Tell each model's estimated recall with its 95 % interval."""
    _show(context, "SELECT * FROM moderation.recall()")


@commands.command()
def review(
    context: typer.Context,
    claim: Annotated[int, typer.Option(help="Claim so many images.", min=0, max=100)] = 0,
    queue: Annotated[str | None, typer.Option(help="Only this queue, for example appeal.")] = None,
    release: Annotated[UUID | None, typer.Option(help="Give a claimed image back.")] = None,
    limit: Limit = 20,
) -> None:
    """Show what waits for a person, claim images or give one back."""
    if release is not None:
        _show(context, "SELECT moderation.release(:image) AS released", {"image": release})
        return
    columns = (
        "image_id, queue, source, label, round(score::numeric, 4) AS score, tier, claimed_by, "
        "image_url, evidence_url"
    )
    if claim:
        query = f"SELECT {columns} FROM moderation.claim_next(:claim, :queue)"  # noqa: S608 - a constant
    else:
        query = (
            f"SELECT {columns} FROM moderation.review_queue "  # noqa: S608 - a constant
            "WHERE (CAST(:queue AS text) IS NULL OR queue = :queue) LIMIT :limit"
        )
    _show(context, query, {"claim": claim, "queue": queue, "limit": limit})


@commands.command()
def decide(
    context: typer.Context,
    image: Annotated[UUID, typer.Argument(help="The image.")],
    decision: Annotated[str, typer.Argument(help="real, generated or unsure.")],
    reason: Annotated[str, typer.Option(help="A code; a wrong one lists them all.")],
    note: Note = None,
    overturn: Annotated[
        bool, typer.Option("--overturn", help="Replace the decision that stands.")
    ] = False,
) -> None:
    """Decide an image, or overturn an earlier decision."""
    function = "overturn" if overturn else "decide"
    _show(
        context,
        f"SELECT moderation.{function}(:image, :decision, :reason, :note) AS decision_id",
        {"image": image, "decision": decision, "reason": reason, "note": note},
    )


@appeals.command("list")
def list_appeals(context: typer.Context, limit: Limit = 20) -> None:
    """List appeals, open ones first."""
    _show(
        context,
        "SELECT appeal_id, image_id, source, status, opened_at, appealed_decision_by, note "
        "FROM moderation.appeals ORDER BY status <> 'open', opened_at LIMIT :limit",
        {"limit": limit},
    )


@appeals.command("open")
def open_appeal(
    context: typer.Context,
    image: Annotated[UUID, typer.Argument(help="The image.")],
    note: Note = None,
) -> None:
    """Record that somebody appeals."""
    _show(
        context,
        "SELECT moderation.open_appeal(:image, :note) AS appeal_id",
        {"image": image, "note": note},
    )


@appeals.command("close")
def close_appeal(
    context: typer.Context,
    appeal: Annotated[UUID, typer.Argument(help="The appeal.")],
    outcome: Annotated[str, typer.Argument(help="upheld, overturned or dropped.")],
    reason: Annotated[str | None, typer.Option(help="Reason code of an overturn.")] = None,
    note: Note = None,
) -> None:
    """Close an appeal that somebody else's decision led to."""
    _show(
        context,
        "SELECT moderation.close_appeal(:appeal, :outcome, :reason, :note) AS decision_id",
        {"appeal": appeal, "outcome": outcome, "reason": reason, "note": note},
    )


@policy.command("show")
def show_policies(context: typer.Context) -> None:
    """List the policies in force and the sources where flagging is stopped."""
    _show(
        context,
        "SELECT p.id, coalesce(p.source, '(every other)') AS source, p.review, p.flag, "
        "p.flag_high, p.audit_share, p.min_flag_share, p.max_flag_share, p.reason "
        "FROM app.policies p WHERE p.id = "
        "(SELECT max(x.id) FROM app.policies x WHERE x.source IS NOT DISTINCT FROM p.source)",
    )
    _show(
        context,
        "SELECT source, opened_at AS flagging_stopped_since, flag_share, images "
        "FROM app.breakers WHERE closed_at IS NULL",
    )


Review = Annotated[float, typer.Option(help="Score from which a person looks.")]
Flag = Annotated[float, typer.Option(help="Score from which an image is flagged.")]
FlagHigh = Annotated[float, typer.Option(help="Score from which it is flagged as high.")]


@policy.command()
def preview(
    context: typer.Context,
    review: Review,
    flag: Flag,
    flag_high: FlagHigh,
    source: Source = None,
    days: Annotated[float, typer.Option(help="Try it on the verdicts of so many days.")] = 30,
) -> None:
    """Say what a policy would have done to past verdicts; nothing is changed."""
    from worker.moderation import policies

    draft = policies.Draft(source=source, review=review, flag=flag, flag_high=flag_high)
    with _engine(context) as engine:
        seen = policies.preview(engine, draft, since=timedelta(days=days))
    typer.echo(f"{seen.verdicts} verdicts, {sum(c.images for c in seen.changes)} change tier")
    for change in seen.changes:
        examples = " ".join(map(str, change.examples))
        typer.echo(f"{change.before} → {change.after}: {change.images}, for example {examples}")
    for name, rate in (("false positives", seen.false_positives), ("recall", seen.recall)):
        if rate is None:
            typer.echo(f"{name}: nothing decided yet")
        else:
            typer.echo(
                f"{name} at flag: {rate.share:.2%} ({rate.low:.2%} to {rate.high:.2%}, "
                f"{rate.decided} decided)"
            )
    for base, (expected, at_least) in seen.precision.items():
        typer.echo(
            f"precision if {base:.1%} of uploads are generated: {expected:.1%}, "
            f"at least {at_least:.1%}"
        )


@policy.command("set")
def set_policy(
    context: typer.Context,
    review: Review,
    flag: Flag,
    flag_high: FlagHigh,
    reason: Why,
    source: Source = None,
    audit_share: Annotated[float, typer.Option(help="Share drawn into the audit.")] = 0.005,
    min_flag_share: Annotated[float, typer.Option(help="Lower end of the breaker's band.")] = 0,
    max_flag_share: Annotated[float, typer.Option(help="Upper end of the breaker's band.")] = 0.2,
) -> None:
    """Put a policy in force for verdicts from now on."""
    from worker.moderation import policies

    draft = policies.Draft(
        source=source,
        review=review,
        flag=flag,
        flag_high=flag_high,
        audit_share=audit_share,
        min_flag_share=min_flag_share,
        max_flag_share=max_flag_share,
    )
    with _engine(context) as engine:
        typer.echo(f"policy {policies.enact(engine, draft, reason=reason)} is in force")


@policy.command()
def threshold(
    context: typer.Context,
    false_positives: Annotated[float, typer.Option(help="Budget, for example 0.01.")],
    source: Source = None,
) -> None:
    """Find the lowest score whose false-positive rate surely stays within a budget."""
    from worker.moderation import policies

    with _engine(context) as engine:
        found = policies.threshold_for(engine, false_positives=false_positives, source=source)
    typer.echo(f"{found:.6f}")


@policy.command()
def check(context: typer.Context) -> None:
    """Look now, as beat does regularly, where the share of flags left its band; stop flagging."""
    from worker.moderation.flagging import check_breakers

    with _engine(context) as engine:
        trips = check_breakers(engine)
    for trip in trips:
        typer.echo(
            f"{printable(trip.source)}: flagging stopped at {trip.flag_share:.1%} "
            f"of {trip.images} verdicts"
        )
    if not trips:
        typer.echo("every source is within its band, or is stopped already")


@policy.command()
def resume(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="The source.")],
    reason: Why,
    by: Annotated[str, typer.Option(help="Who resumes it.")],
) -> None:
    """Let a source flag again after its circuit breaker opened."""
    from worker.moderation.flagging import resume_flagging

    with _engine(context) as engine:
        resumed = resume_flagging(engine, source, reason=reason, by=by)
    typer.echo(f"{source} flags again" if resumed else f"nothing was stopped for {source}")


@commands.command()
def link(
    context: typer.Context,
    image: Annotated[UUID, typer.Argument(help="The image.")],
    minutes: Annotated[int, typer.Option(help="How long the links work.", min=1)] = 10,
) -> None:
    """Print links to the picture and its evidence that open in a browser for a while."""
    from sqlalchemy import text

    from worker.storage_s3 import S3Storage

    storage = S3Storage(cli.of(context).settings().s3)
    with _engine(context) as engine, engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT i.bucket, i.key, v.evidence_uri FROM app.images i "
                "LEFT JOIN app.verdicts v ON v.image_id = i.id AND v.evidence_uri IS NOT NULL "
                "WHERE i.id = :image ORDER BY v.scored_at DESC NULLS LAST LIMIT 1"
            ),
            {"image": image},
        ).one_or_none()
    if row is None:
        raise SettingsError(f"no image {image}")
    typer.echo(storage.presign(row.bucket, row.key, expires_s=60 * minutes))
    if row.evidence_uri is not None:
        bucket, _, key = row.evidence_uri.removeprefix("s3://").partition("/")
        typer.echo(storage.presign(bucket, key, expires_s=60 * minutes))


@commands.command()
def retain(
    context: typer.Context,
    erase: Annotated[UUID | None, typer.Option(help="Ask for this image's deletion first.")] = None,
    reason: Annotated[str, typer.Option(help="Why it is deleted.")] = "on request",
) -> None:
    """Remove what is older than the settings keep, and finish requested deletions."""
    from worker.moderation import retention
    from worker.retraining.dataset_store import open_storage
    from worker.retraining.erasure import SnapshotShards
    from worker.storage_s3 import S3Storage

    settings = cli.of(context).settings()
    with _engine(context) as engine:
        if erase is not None:
            retention.request_erasure(engine, erase, reason=reason)
        shards = SnapshotShards(engine, open_storage(settings), settings.training.bucket)
        storage = S3Storage(settings.s3)
        done = retention.Keeper(engine, storage, settings.retention, shards=shards).run()
    typer.echo(f"{done.erased} erased, {done.originals} originals, {done.evidence} evidence")


@webhooks.command()
def run(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Send what is due and stop.")] = False,
) -> None:
    """Send webhooks as they come due, until stopped."""
    from worker.moderation.listening import OUTBOX, listen
    from worker.moderation.webhooks import Dispatcher

    settings = cli.of(context).settings()
    with _engine(context) as engine:
        dispatcher = Dispatcher(engine, settings.webhooks)
        typer.echo(f"{dispatcher.send_due()} delivered")
        if once:
            return
        # Back-offs end without a notification: look again at least that often.
        for _ in listen(
            settings.postgres.url.get_secret_value(),
            [OUTBOX],
            timeout_s=settings.webhooks.backoff_s,
        ):
            while dispatcher.send_due():
                pass


@webhooks.command()
def dead(context: typer.Context, limit: Limit = 100) -> None:
    """Count the outbox and list the messages that were given up."""
    from worker.moderation.webhooks import dead_letters, outbox_counts

    with _engine(context) as engine:
        counts = outbox_counts(engine)
        letters = dead_letters(engine, limit=limit)
    typer.echo(" ".join(f"{name}={count}" for name, count in counts.items()))
    for letter in letters:
        error = printable(letter.last_error or "")
        typer.echo(f"{letter.message_id} {letter.topic} {letter.attempts} {error}")


@webhooks.command()
def replay(
    context: typer.Context,
    message: Annotated[list[int] | None, typer.Option(help="These messages.")] = None,
    hours: Annotated[float | None, typer.Option(help="All of the last so many hours.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
) -> None:
    """Send messages again; receivers know them by their id."""
    from worker.moderation import webhooks as sending

    since = None if hours is None else datetime.now(UTC) - timedelta(hours=hours)
    with _engine(context) as engine:
        count = sending.replay(engine, message_ids=message or (), since=since, dead=dead)
    typer.echo(f"{count} will be sent again")


@moderators.command()
def allow(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A login that is a member of role moderator.")],
    source: Annotated[list[str] | None, typer.Option(help="Only these; else every one.")] = None,
    lead: Annotated[bool, typer.Option("--lead", help="May overturn, hold and erase.")] = False,
) -> None:
    """Let a login moderate."""
    from worker.moderation import moderators as people

    with _engine(context) as engine:
        people.allow(engine, name, sources=source, lead=lead)


@moderators.command()
def disallow(
    context: typer.Context, name: Annotated[str, typer.Argument(help="The login.")]
) -> None:
    """Let a login see nothing any more."""
    from worker.moderation import moderators as people

    with _engine(context) as engine:
        typer.echo("done" if people.disallow(engine, name) else f"{name} was no moderator")


@moderators.command("list")
def list_moderators(context: typer.Context) -> None:
    """List who may moderate what."""
    from worker.moderation import moderators as people

    with _engine(context) as engine:
        for one in people.allowances(engine):
            sources = "every source" if one.sources is None else ", ".join(one.sources)
            typer.echo(f"{one.moderator}: {sources}{' (lead)' if one.lead else ''}")


@contextmanager
def _engine(context: typer.Context) -> Iterator[Engine]:
    """Yield connections; what the database refuses becomes one line, without the statement."""
    from sqlalchemy import exc

    from worker.database import build_engine

    engine = build_engine(cli.of(context).settings().postgres, application_name="unlatent-cli")
    try:
        yield engine
    except exc.DBAPIError as error:
        message = str(error.orig).splitlines()[0]
        hint = getattr(getattr(error.orig, "diag", None), "message_hint", None)
        raise SettingsError(f"{message} ({hint})" if hint else message) from error
    finally:
        engine.dispose()


def _show(context: typer.Context, query: str, values: dict[str, Any] | None = None) -> None:
    """Run one statement and print its rows as a table."""
    from sqlalchemy import text

    with _engine(context) as engine, engine.begin() as connection:
        result = connection.execute(text(query), values or {})
        rows = [list(result.keys()), *([_cell(value) for value in row] for row in result)]
    _table(rows)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else printable(str(value))


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
