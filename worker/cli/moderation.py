"""`unlatent verdicts`, `quality`, `review`, `decide`, `reasons`, `appeals`: moderation without SQL.

Moderators point UNLATENT_POSTGRES__MODERATOR_URL at their own login: the database knows them by it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from worker.cli.common import queries
from worker.cli.common.options import Image, Limit, Note, Source
from worker.cli.common.rows import Format, FormatOption

commands = typer.Typer()
review = typer.Typer(no_args_is_help=True, help="List, claim and give back what waits for people.")
appeals = typer.Typer(no_args_is_help=True, help="List, open and close appeals.")
commands.add_typer(review, name="review")
commands.add_typer(appeals, name="appeals")

Said = Literal["real", "generated", "unsure"]
Tier = Literal["allow", "review", "flag", "flag_high"]
Queue = Literal["flagged", "unsure", "audit", "appeal", "report", "requested"]
Outcome = Literal["upheld", "overturned", "dropped"]
QueueOption = Annotated[Queue | None, typer.Option(help="Only this queue.")]
Sources = Annotated[list[str] | None, typer.Option("--source", help="Only these sources.")]

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
    format_: FormatOption = Format.TABLE,
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
    queries.print_rows(context, query, values, format_=format_)


@commands.command()
def quality(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """Print each model's estimated recall with its 95 % interval."""
    queries.print_rows(context, "SELECT * FROM moderation.recall()", format_=format_)


@review.command("list")
def list_queue(
    context: typer.Context,
    queue: QueueOption = None,
    sources: Sources = None,
    limit: Limit = 20,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List the images that wait for a person, the most urgent first."""
    rows = (
        "moderation.review_queue WHERE (CAST(:queue AS text) IS NULL OR queue = :queue) "
        "AND (CAST(:sources AS text[]) IS NULL OR source = ANY (:sources)) LIMIT :limit"
    )
    values = {"queue": queue, "sources": sources, "limit": limit}
    _print_queue(context, rows, values, format_)


@review.command()
def claim(
    context: typer.Context,
    image: Annotated[
        UUID | None, typer.Argument(help="The image.", show_default="the next ones of the queue")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of images.", min=1, max=100)] = 1,
    queue: QueueOption = None,
    sources: Sources = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Claim the next images of the queue, or a chosen one, and print them.

    Images of the random audit are claimed blind: what the detector said of them stays empty.
    """
    if image is None:
        rows = "moderation.claim_next(:count, :queue, CAST(:sources AS text[]))"
    elif queue is not None or sources or count > 1:
        raise typer.BadParameter("--count, --queue and --source choose images; name one or choose")
    else:
        rows = "moderation.claim(:image)"
    values = {"image": image, "count": count, "queue": queue, "sources": sources}
    _print_queue(context, rows, values, format_)


def _print_queue(
    context: typer.Context, rows: str, values: dict[str, Any], format_: Format
) -> None:
    columns = f"image_id, queue, source, {_SAID}, claimed_by, image_url, evidence_url"
    queries.print_rows(context, f"SELECT {columns} FROM {rows}", values, format_=format_)  # noqa: S608 - constants


@review.command()
def extend(context: typer.Context, image: Image, format_: FormatOption = Format.TABLE) -> None:
    """Hold a claimed image for longer."""
    query = "SELECT moderation.extend(:image) AS claimed_until"
    queries.print_rows(context, query, {"image": image}, format_=format_)


@review.command()
def skip(
    context: typer.Context, image: Image, note: Note = None, format_: FormatOption = Format.TABLE
) -> None:
    """Leave an image to others: it is not handed to you again."""
    query = "SELECT moderation.skip(:image, :note) IS NOT NULL AS skipped"
    queries.print_rows(context, query, {"image": image, "note": note}, format_=format_)


@review.command()
def release(context: typer.Context, image: Image, format_: FormatOption = Format.TABLE) -> None:
    """Give a claimed image back."""
    query = "SELECT moderation.release(:image) AS released"
    queries.print_rows(context, query, {"image": image}, format_=format_)


@review.command()
def request(context: typer.Context, image: Image, format_: FormatOption = Format.TABLE) -> None:
    """Put an image into the queue."""
    query = "SELECT moderation.request_review(:image) IS NOT NULL AS requested"
    queries.print_rows(context, query, {"image": image}, format_=format_)


@commands.command()
def decide(
    context: typer.Context,
    image: Image,
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
    format_: FormatOption = Format.TABLE,
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
        format_=format_,
    )


@commands.command()
def reasons(context: typer.Context, format_: FormatOption = Format.TABLE) -> None:
    """List the reasons of decisions: codes, and the words that a person can be told."""
    query = "SELECT * FROM moderation.reasons ORDER BY decision, code"
    queries.print_rows(context, query, format_=format_)


@appeals.command("list")
def list_appeals(
    context: typer.Context, limit: Limit = 20, format_: FormatOption = Format.TABLE
) -> None:
    """List appeals, open ones first."""
    queries.print_rows(
        context,
        "SELECT appeal_id, image_id, source, status, opened_at, appealed_decision_by, note "
        "FROM moderation.appeals ORDER BY status <> 'open', opened_at LIMIT :limit",
        {"limit": limit},
        format_=format_,
    )


@appeals.command("open")
def open_appeal(
    context: typer.Context,
    image: Image,
    note: Note = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Record that somebody appeals."""
    queries.print_rows(
        context,
        "SELECT moderation.open_appeal(:image, :note) AS appeal_id",
        {"image": image, "note": note},
        format_=format_,
    )


@appeals.command("close")
def close_appeal(
    context: typer.Context,
    appeal: Annotated[UUID, typer.Argument(help="The appeal.")],
    outcome: Annotated[Outcome, typer.Argument(help="Whether the label stays.")],
    reason: Annotated[str | None, typer.Option(help="Reason code of an overturn.")] = None,
    note: Note = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Close an appeal that somebody else's decision led to."""
    queries.print_rows(
        context,
        "SELECT CAST(:outcome AS text) AS outcome, "
        "moderation.close_appeal(:appeal, :outcome, :reason, :note) AS decision_id",
        {"appeal": appeal, "outcome": outcome, "reason": reason, "note": note},
        format_=format_,
    )
