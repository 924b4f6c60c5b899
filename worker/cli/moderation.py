"""`unlatent verdicts`, `review`, `decide`, `reasons`, `appeals`, `policy`, `webhooks`, without SQL.

Moderators point UNLATENT_POSTGRES__MODERATOR_URL at their own login: the database knows them by it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

import typer

from worker.cli import context as cli
from worker.cli import queries
from worker.text import escape_controls

commands = typer.Typer()
appeals = typer.Typer(no_args_is_help=True, help="Open, list and close appeals.")
policy = typer.Typer(no_args_is_help=True, help="Try and set thresholds; resume flagging.")
webhooks = typer.Typer(no_args_is_help=True, help="Send, inspect and replay webhooks.")
moderators = typer.Typer(no_args_is_help=True, help="Who may moderate which sources.")
commands.add_typer(appeals, name="appeals")
commands.add_typer(policy, name="policy")
commands.add_typer(webhooks, name="webhooks")
commands.add_typer(moderators, name="moderators")

Said = Literal["real", "generated", "unsure"]
Tier = Literal["allow", "review", "flag", "flag_high"]
Queue = Literal["flagged", "unsure", "audit", "appeal", "report", "requested"]
Outcome = Literal["upheld", "overturned", "dropped"]
Source = Annotated[str | None, typer.Option(help="Only this source.")]
Limit = Annotated[int, typer.Option(help="Maximum number of rows.", min=1)]
Note = Annotated[str | None, typer.Option(help="Free text for the record.")]
Why = Annotated[str, typer.Option(help="Why, for the record.")]

#: A verdict in the order in which people read it.
_SAID = (
    "label, distance_words, round(distance::numeric, 2) AS distance, "
    "round(score::numeric, 4) AS score, moderation.tier_words(tier, label) AS tier"
)


@commands.command()
def verdicts(
    context: typer.Context,
    image: Annotated[UUID | None, typer.Option(help="The whole history of this image.")] = None,
    source: Source = None,
    label: Annotated[Said | None, typer.Option(help="What the detector said.")] = None,
    tier: Annotated[Tier | None, typer.Option(help="What the policy made of it.")] = None,
    limit: Limit = 20,
) -> None:
    """List current verdicts, newest first, or the history of one image."""
    if image is not None:
        query = (
            "SELECT at, event, actor, summary FROM moderation.image_history WHERE image_id = :image"
        )
    else:
        query = (
            f"SELECT image_id, scored_at, source, {_SAID}, decision FROM moderation.verdicts "  # noqa: S608 - a constant
            "WHERE (CAST(:source AS text) IS NULL OR source = :source) "
            "AND (CAST(:label AS text) IS NULL OR label = :label) "
            "AND (CAST(:tier AS text) IS NULL OR tier = :tier) LIMIT :limit"
        )
    values = {"image": image, "source": source, "label": label, "tier": tier, "limit": limit}
    queries.print_rows(context, query, values)


@commands.command()
def quality(context: typer.Context) -> None:
    """Tell each model's estimated recall with its 95 % interval."""
    queries.print_rows(context, "SELECT * FROM moderation.recall()")


@commands.command()
def review(
    context: typer.Context,
    claim: Annotated[int, typer.Option(help="Number of images to claim.", min=0, max=100)] = 0,
    queue: Annotated[Queue | None, typer.Option(help="Only this queue.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only these sources.")] = None,
    take: Annotated[UUID | None, typer.Option(help="Claim this image.")] = None,
    extend: Annotated[UUID | None, typer.Option(help="Hold a claimed image for longer.")] = None,
    skip: Annotated[UUID | None, typer.Option(help="Leave an image to others.")] = None,
    release: Annotated[UUID | None, typer.Option(help="Give a claimed image back.")] = None,
    request: Annotated[UUID | None, typer.Option(help="Put an image into the queue.")] = None,
    note: Note = None,
    limit: Limit = 20,
) -> None:
    """Show what waits for a person; claim images, give them back, or ask for one to be reviewed.

    Images of the random audit are claimed blind: what the detector said of them stays empty.
    """
    for image, call in (
        (request, "moderation.request_review(:image) IS NOT NULL AS requested"),
        (release, "moderation.release(:image) AS released"),
        (skip, "moderation.skip(:image, :note) IS NOT NULL AS skipped"),
        (extend, "moderation.extend(:image) AS claimed_until"),
    ):
        if image is not None:
            queries.print_rows(context, f"SELECT {call}", {"image": image, "note": note})
            return
    columns = f"image_id, queue, source, {_SAID}, claimed_by, image_url, evidence_url"
    if take is not None:
        rows = "moderation.claim(:take)"
    elif claim:
        rows = "moderation.claim_next(:claim, :queue, CAST(:sources AS text[]))"
    else:
        rows = (
            "moderation.review_queue WHERE (CAST(:queue AS text) IS NULL OR queue = :queue) "
            "AND (CAST(:sources AS text[]) IS NULL OR source = ANY (:sources)) LIMIT :limit"
        )
    values = {"take": take, "claim": claim, "queue": queue, "sources": source, "limit": limit}
    queries.print_rows(context, f"SELECT {columns} FROM {rows}", values)  # noqa: S608 - constants


@commands.command()
def decide(
    context: typer.Context,
    image: Annotated[UUID, typer.Argument(help="The image.")],
    decision: Annotated[Said, typer.Argument(help="What it is.")],
    reason: Annotated[str, typer.Option(help="A code of `unlatent reasons`.")],
    note: Note = None,
    overturn: Annotated[
        bool, typer.Option("--overturn", help="Replace the decision that stands.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Replace what you decided in the last 5 minutes.")
    ] = False,
    opinion: Annotated[
        bool, typer.Option("--opinion", help="Only give a second opinion, which binds nobody.")
    ] = False,
) -> None:
    """Decide an image, overturn an earlier decision, or give a second opinion."""
    chosen = {"overturn": overturn, "undo": undo, "opinion": opinion}
    if sum(chosen.values()) > 1:
        raise typer.BadParameter("--overturn, --undo and --opinion exclude each other")
    function = next((name for name, wanted in chosen.items() if wanted), "decide")
    queries.print_rows(
        context,
        f"SELECT moderation.{function}(:image, :decision, :reason, :note) AS "
        f"{'opinion' if opinion else 'decision'}_id",
        {"image": image, "decision": decision, "reason": reason, "note": note},
    )


@commands.command()
def reasons(context: typer.Context) -> None:
    """List the reasons of decisions: codes, and the words that a person can be told."""
    queries.print_rows(context, "SELECT * FROM moderation.reasons ORDER BY decision, code")


@appeals.command("list")
def list_appeals(context: typer.Context, limit: Limit = 20) -> None:
    """List appeals, open ones first."""
    queries.print_rows(
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
    queries.print_rows(
        context,
        "SELECT moderation.open_appeal(:image, :note) AS appeal_id",
        {"image": image, "note": note},
    )


@appeals.command("close")
def close_appeal(
    context: typer.Context,
    appeal: Annotated[UUID, typer.Argument(help="The appeal.")],
    outcome: Annotated[Outcome, typer.Argument(help="Whether the label stays.")],
    reason: Annotated[str | None, typer.Option(help="Reason code of an overturn.")] = None,
    note: Note = None,
) -> None:
    """Close an appeal that somebody else's decision led to."""
    queries.print_rows(
        context,
        "SELECT CAST(:outcome AS text) AS outcome, "
        "moderation.close_appeal(:appeal, :outcome, :reason, :note) AS decision_id",
        {"appeal": appeal, "outcome": outcome, "reason": reason, "note": note},
    )


@policy.command("show")
def show_policies(context: typer.Context) -> None:
    """List the policies in force and the sources where flagging is stopped."""
    queries.print_operator_rows(
        context,
        "SELECT p.id, coalesce(p.source, '(every other)') AS source, p.review, p.flag, "
        "p.flag_high, p.audit_share, p.min_flag_share, p.max_flag_share, p.reason "
        "FROM app.policies p WHERE p.id = "
        "(SELECT max(x.id) FROM app.policies x WHERE x.source IS NOT DISTINCT FROM p.source)",
    )
    queries.print_operator_rows(
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
    days: Annotated[
        float, typer.Option(help="Number of past days (UTC) whose verdicts it is tried on.")
    ] = 30,
) -> None:
    """Say what a policy would have done to past verdicts, or to a sample; nothing is changed."""
    from worker.moderation import policies

    draft = policies.PolicyDraft(source=source, review=review, flag=flag, flag_high=flag_high)
    with queries.engine(context, as_operator=True) as engine:
        seen = policies.preview(engine, draft, since=timedelta(days=days))
    sampled = f"{seen.looked_at} of " if seen.looked_at < seen.verdicts else ""
    typer.echo(
        f"{sampled}{seen.verdicts} verdicts, {sum(c.images for c in seen.changes)} change tier"
    )
    for change in seen.changes:
        examples = " ".join(map(str, change.examples))
        typer.echo(f"{change.before} → {change.after}: {change.images}, for example {examples}")
    if seen.weighed < seen.decided:
        typer.echo(f"rates rest on {seen.weighed} of {seen.decided} decided verdicts")
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

    draft = policies.PolicyDraft(
        source=source,
        review=review,
        flag=flag,
        flag_high=flag_high,
        audit_share=audit_share,
        min_flag_share=min_flag_share,
        max_flag_share=max_flag_share,
    )
    with queries.engine(context, as_operator=True) as engine:
        typer.echo(f"policy {policies.activate(engine, draft, reason=reason)} is in force")


@policy.command()
def threshold(
    context: typer.Context,
    false_positives: Annotated[float, typer.Option(help="Budget, for example 0.01.")],
    source: Source = None,
) -> None:
    """Find the lowest score whose false-positive rate surely stays within a budget."""
    from worker.moderation import policies

    with queries.engine(context, as_operator=True) as engine:
        found = policies.threshold_for(engine, false_positives=false_positives, source=source)
    typer.echo(f"{found:.6f}")


@policy.command()
def check(context: typer.Context) -> None:
    """Look now, as beat does regularly, where the share of flags left its band; stop flagging."""
    from worker.moderation.flagging_breaker import check_breakers

    with queries.engine(context, as_operator=True) as engine:
        trips = check_breakers(engine)
    for trip in trips:
        typer.echo(
            f"{escape_controls(trip.source)}: flagging stopped at {trip.flag_share:.1%} "
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
    from worker.moderation.flagging_breaker import resume_flagging

    with queries.engine(context, as_operator=True) as engine:
        resumed = resume_flagging(engine, source, reason=reason, by=by)
    typer.echo(f"{source} flags again" if resumed else f"nothing was stopped for {source}")


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
def dead(context: typer.Context, limit: Limit = 100) -> None:
    """Count the outbox and list the messages that were given up."""
    from worker.moderation.webhooks import dead_letters, outbox_counts

    with queries.engine(context) as engine:
        counts = outbox_counts(engine)
        letters = dead_letters(engine, limit=limit)
    typer.echo(" ".join(f"{name}={count}" for name, count in counts.items()))
    for letter in letters:
        error = escape_controls(letter.last_error or "")
        typer.echo(
            f"{letter.message_id} {letter.endpoint} {letter.topic} {letter.attempts} {error}"
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
def list_moderators(context: typer.Context) -> None:
    """List who may moderate what."""
    from worker.moderation import moderators as people

    with queries.engine(context, as_operator=True) as engine:
        for one in people.source_grants(engine):
            sources = "every source" if one.sources is None else ", ".join(one.sources)
            typer.echo(f"{one.moderator}: {sources}{' (lead)' if one.lead else ''}")
