"""The page of the day: one claimed image, everything needed to decide it, and then the next."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from worker.console.desk import Desk
from worker.console.image_view import view_of
from worker.console.pages.signed_in import SignedIn
from worker.console.rendering import page

router = APIRouter()

#: What images come next: a queue and a source. A cookie, as a blind page must not name the queue.
TAKING = "unlatent_taking"

#: Last decisions that may still be taken back, on the review page.
_RECENT = """
    SELECT decision_id, image_id, decision, reason_code, words, created_at, overturned_by
    FROM moderation.decisions
    WHERE moderator = :me AND created_at > now() - interval '10 minutes'
    ORDER BY decision_id DESC LIMIT 5
"""


@router.get("/")
def review(request: Request, moderator: SignedIn) -> Response:
    """Show the image that was claimed first, or what could be claimed."""
    with moderator.desk() as desk:
        claims = desk.rows("SELECT * FROM moderation.my_claims()")
        values = {"me": desk.me, "recent": desk.rows(_RECENT, me=desk.me.name)}
        if claims:
            return page(
                request, "review.html", claim=claims[0], more=len(claims) - 1, **values,
                **view_of(desk, claims[0]["image_id"]),
            )  # fmt: skip
        summary = desk.rows("SELECT * FROM moderation.queue_summary()")
        queue, source = _taking(request)
        return page(
            request, "idle.html", summary=summary, queue=queue, source=source, **values
        )


@router.post("/claim")
def claim(
    request: Request,
    moderator: SignedIn,
    queue: Annotated[str, Form()] = "",
    source: Annotated[str, Form()] = "",
) -> Response:
    """Take the next image of a queue and a source, each empty for any."""
    del request
    with moderator.desk() as desk:
        _claim_next(desk, queue, source)
    response = RedirectResponse("/", 303)
    response.set_cookie(
        TAKING,
        urlencode({"queue": queue, "source": source}),
        httponly=True,
        samesite="strict",
        path="/",
    )
    return response


@router.post("/images/{image}/decision")
def decide(
    request: Request,
    moderator: SignedIn,
    image: UUID,
    choice: Annotated[str, Form()],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Record a decision, "generated generated_artefacts" for one, and take the next image."""
    decision, _, reason = choice.partition(" ")
    with moderator.desk() as desk:
        desk.value(
            "SELECT moderation.decide(:image, :decision, :reason, :note)",
            image=image,
            decision=decision,
            reason=reason,
            note=note.strip() or None,
        )
        if not desk.rows("SELECT * FROM moderation.my_claims()"):
            _claim_next(desk, *_taking(request))
    return RedirectResponse("/", 303)


@router.post("/images/{image}/release")
def release(moderator: SignedIn, image: UUID) -> Response:
    """Give a claimed image back."""
    with moderator.desk() as desk:
        desk.value("SELECT moderation.release(:image)", image=image)
    return RedirectResponse("/", 303)


def _taking(request: Request) -> tuple[str, str]:
    kept = dict(parse_qsl(request.cookies.get(TAKING, "")))
    return kept.get("queue", ""), kept.get("source", "")


def _claim_next(desk: Desk, queue: str, source: str) -> None:
    desk.rows("SELECT image_id FROM moderation.claim_next(1, :queue)", queue=queue or None)
