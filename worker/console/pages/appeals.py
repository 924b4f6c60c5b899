"""Appeals: open ones first, and who may close them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from worker.console.pages.signed_in import SignedIn
from worker.console.rendering import page

router = APIRouter()

_APPEALS = """
    SELECT appeal_id, image_id, source, status, opened_at, opened_by, note, appealed_decision_by,
        decision, closed_at, closed_by, closing_note
    FROM moderation.appeals
    ORDER BY status <> 'open', coalesce(closed_at, opened_at) DESC LIMIT 100
"""


@router.get("/appeals")
def appeals(request: Request, moderator: SignedIn) -> Response:
    """List the open appeals and the last that were closed."""
    with moderator.desk() as desk:
        return page(request, "appeals.html", me=desk.me, appeals=desk.rows(_APPEALS))
