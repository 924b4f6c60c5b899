"""The page of the day: one claimed image, everything needed to decide it, and then the next."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from worker.console.desk import Desk, Refused
from worker.console.image_view import view_of
from worker.console.pages.signed_in import SignedIn
from worker.console.rendering import page

router = APIRouter()

#: What images come next: a queue and a source. A cookie, as a blind page must not name the queue.
TAKING = "unlatent_taking"

#: The caller's last decisions; those of the last minutes may be changed.
_RECENT = """
    SELECT decision_id, image_id, decision, reason_code, words, created_at, overturned_by,
        overturned_by IS NULL AND created_at > now() - interval '5 minutes' AS open
    FROM moderation.decisions
    WHERE moderator = :me AND created_at > now() - interval '1 hour'
    ORDER BY decision_id DESC LIMIT 5
"""


@router.get("/")
def review(request: Request, moderator: SignedIn) -> Response:
    """Show the image that was claimed first, or what could be claimed."""
    with moderator.desk() as desk:
        claims = desk.rows("SELECT * FROM moderation.my_claims()")
        values: dict[str, Any] = {"me": desk.me, "recent": desk.rows(_RECENT, me=desk.me.name)}
        if not claims:
            queue, source = _taking(request)
            summary = desk.rows("SELECT * FROM moderation.queue_summary ORDER BY queue, source")
            return page(request, "idle.html", summary=summary, queue=queue, source=source, **values)
        values |= {"claim": claims[0], **view_of(desk, claims[0]["image_id"])}
    layers = request.app.state.pictures.layers_of(values["facts"])
    return page(request, "review.html", layers=layers, **values)


@router.post("/claim")
def claim(
    moderator: SignedIn,
    queue: Annotated[str, Form()] = "",
    source: Annotated[str, Form()] = "",
) -> Response:
    """Take the next image of a queue and a source, each empty for any."""
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
    """Record a decision and its reason, as in "real real_original", and take the next image."""
    with moderator.desk() as desk:
        judge(desk, "decide", image, choice, note)
        _go_on(desk, request)
    return RedirectResponse("/", 303)


@router.post("/images/{image}/skip")
def skip(
    request: Request, moderator: SignedIn, image: UUID, why: Annotated[str, Form()] = ""
) -> Response:
    """Leave an image to somebody else for good, and take the next one."""
    with moderator.desk() as desk:
        desk.value("SELECT moderation.skip(:image, :why)", image=image, why=why.strip() or None)
        _go_on(desk, request)
    return RedirectResponse("/", 303)


@router.post("/appeals/{appeal}")
def close_appeal(
    request: Request,
    moderator: SignedIn,
    appeal: UUID,
    choice: Annotated[str, Form()],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Close an appeal: "upheld", "dropped", or "overturned" with the code of a reason."""
    outcome, _, reason = choice.partition(" ")
    with moderator.desk() as desk:
        desk.value(
            "SELECT moderation.close_appeal(:appeal, :outcome, :reason, :note)",
            appeal=appeal,
            outcome=outcome,
            reason=reason or None,
            note=note.strip() or None,
        )
        _go_on(desk, request)
    return RedirectResponse("/", 303)


_JUDGING = {
    name: f"SELECT moderation.{name}(:image, :decision, :reason, :note)"
    for name in ("decide", "undo", "opinion")
}


def judge(desk: Desk, function: str, image: UUID, choice: str, note: str) -> None:
    """Call a function that takes a decision and its reason, which are one value of a form."""
    decision, _, reason = choice.partition(" ")
    desk.value(
        _JUDGING[function],
        image=image,
        decision=decision,
        reason=reason,
        note=note.strip() or None,
    )


def _taking(request: Request) -> tuple[str, str]:
    kept = dict(parse_qsl(request.cookies.get(TAKING, "")))
    return kept.get("queue", ""), kept.get("source", "")


def _go_on(desk: Desk, request: Request) -> None:
    if not desk.rows("SELECT * FROM moderation.my_claims()"):
        _claim_next(desk, *_taking(request))


def _claim_next(desk: Desk, queue: str, source: str) -> None:
    if "\0" in queue + source:
        raise Refused("There is no such queue or source.", status=422)
    desk.rows(
        "SELECT image_id FROM moderation.claim_next(1, :queue, CAST(:sources AS text[]))",
        queue=queue or None,
        sources=[source] if source else None,
    )
