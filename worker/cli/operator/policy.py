"""`unlatent policy`: which score leads to which tier, and what stops flagging."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from worker.cli.common import queries
from worker.cli.common.options import Source, Why
from worker.cli.common.rows import Format, FormatOption
from worker.text import escape_controls

commands = typer.Typer()
policy = typer.Typer(no_args_is_help=True, help="Try and set thresholds; resume flagging.")
commands.add_typer(policy, name="policy")

Review = Annotated[float, typer.Option(help="Score from which a person looks.")]
Flag = Annotated[float, typer.Option(help="Score from which an image is flagged.")]
FlagHigh = Annotated[float, typer.Option(help="Score from which it is flagged as high.")]


#: The policy in force of every source that has one of its own or whose flagging is stopped, and the
#: one of every other source.
_IN_FORCE = """
WITH latest AS (SELECT DISTINCT ON (source) * FROM app.policies ORDER BY source, id DESC),
    stopped AS (SELECT * FROM app.breakers WHERE closed_at IS NULL),
    named AS (
        SELECT source FROM latest WHERE source IS NOT NULL UNION SELECT source FROM stopped
        UNION ALL SELECT NULL
    )
SELECT p.id, coalesce(n.source, CAST(:every_other AS text)) AS source,
    p.review, p.flag, p.flag_high, p.audit_share, p.min_flag_share, p.max_flag_share, p.reason,
    b.opened_at AS flagging_stopped_since, b.flag_share AS stopped_at_share,
    b.images AS stopped_at_images
FROM named n
JOIN LATERAL (
    SELECT * FROM latest l WHERE l.source IS NULL OR l.source = n.source
    ORDER BY l.source NULLS LAST LIMIT 1
) p ON true
LEFT JOIN stopped b ON b.source = n.source
ORDER BY n.source NULLS LAST
"""


@policy.command("list")
def list_policies(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """List the policies in force, and the sources where flagging is stopped."""
    # Words are for people: a program could take them for the name of a source.
    every_other = "(every other)" if format_ is Format.TABLE else None
    queries.print_operator_rows(context, _IN_FORCE, format_=format_, every_other=every_other)


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
