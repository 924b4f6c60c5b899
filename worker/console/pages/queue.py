"""What waits: counts by queue and source, and a list with filters, page by page."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from worker.console.pages.signed_in import SignedIn
from worker.console.rendering import page

router = APIRouter()

ROWS = 50

#: Filters and the condition of each. A label must not single out images of the blind audit.
_WHERE = {
    "queue": "queue = :queue",
    "source": "source = :source",
    "label": "label = :label AND queue <> 'audit'",
    "free": "(claimed_until IS NULL OR claimed_until < now())",
}


class Filters(BaseModel):
    """What the list is limited to, empty for no limit, and after which row it goes on."""

    queue: Literal["", "flagged", "unsure", "audit", "appeal", "report", "requested"] = ""
    source: str = ""
    label: Literal["", "generated", "unsure", "real"] = ""
    free: Literal["", "yes"] = ""
    after: datetime | None = None
    after_image: UUID | None = None


@router.get("/queue")
def queue(request: Request, moderator: SignedIn, filters: Annotated[Filters, Query()]) -> Response:
    """Show what waits."""
    chosen = {name: value for name in _WHERE if (value := getattr(filters, name))}
    where = [_WHERE[name] for name in chosen]
    values: dict[str, Any] = dict(chosen)
    if filters.after is not None and filters.after_image is not None:
        where.append("(rank_at, image_id) > (:after, :after_image)")
        values |= {"after": filters.after, "after_image": filters.after_image}
    values.pop("free", None)
    # Conditions are the program's own; what was chosen are their parameters.
    # The view is in order; a page that sorted would have the database find every row of it first.
    query = f"""
        SELECT image_id, queue, source, queued_at, rank_at, claimed_by, claimed_until,
            CASE WHEN queue <> 'audit' THEN label END AS label,
            CASE WHEN queue <> 'audit' THEN distance END AS distance
        FROM moderation.review_queue WHERE {" AND ".join(where) or "true"}
        LIMIT {ROWS + 1}
    """  # noqa: S608
    with moderator.desk() as desk:
        summary = desk.rows("SELECT * FROM moderation.queue_summary ORDER BY queue, source")
        rows = desk.rows(query, **values)
        me = desk.me
    shown = rows[:ROWS]
    onward = (
        {**chosen, "after": shown[-1]["rank_at"].isoformat(), "after_image": shown[-1]["image_id"]}
        if len(rows) > ROWS
        else None
    )
    return page(
        request, "queue.html", me=me, summary=summary, rows=shown, filters=filters, onward=onward
    )
