"""Appeals: open ones first, and who may close them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from worker.console.pages.signed_in import SignedIn
from worker.console.rendering import page

router = APIRouter()

#: Each half is bounded by itself: closed appeals are of all times.
_APPEALS = """
    SELECT appeal_id, image_id, source, status, opened_at, opened_by, note, appealed_decision_by,
        decision, closed_at, closed_by, closing_note
    FROM (
        (SELECT * FROM moderation.appeals WHERE closed_at IS NULL
        ORDER BY opened_at DESC LIMIT 100)
        UNION ALL
        (SELECT * FROM moderation.appeals WHERE closed_at IS NOT NULL
        ORDER BY closed_at DESC LIMIT 100)
    ) a
    ORDER BY status <> 'open', coalesce(closed_at, opened_at) DESC LIMIT 100
"""


@router.get("/appeals")
def appeals(request: Request, moderator: SignedIn) -> Response:
    """List the open appeals and the last that were closed."""
    with moderator.desk() as desk:
        return page(request, "appeals.html", me=desk.me, appeals=desk.rows(_APPEALS))
