"""One image without a claim: its pictures, second opinions, and all that can be asked for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from worker.console.desk import Refused
from worker.console.identity import Moderator
from worker.console.image_view import is_blind, view_of
from worker.console.pages.review import judge
from worker.console.pages.signed_in import SignedIn
from worker.console.pictures import Pictures
from worker.console.rendering import page

router = APIRouter()

#: What can be asked for an image, and the function that is asked; `note` is the form's one field.
ASKED = {
    "claim": "SELECT image_id FROM moderation.claim(:image)",
    "extend": "SELECT moderation.extend(:image)",
    "release": "SELECT moderation.release(:image)",
    "appeal": "SELECT moderation.open_appeal(:image, :note)",
    "review": "SELECT moderation.request_review(:image, 'requested', :note)",
    "report": "SELECT moderation.request_review(:image, 'report', :note)",
    "hold": "SELECT moderation.place_hold(:image, :note)",
    "lift": "SELECT moderation.lift_hold(:image, :note)",
    "erasure": "SELECT moderation.request_erasure(:image, :note)",
}
#: After these the image is one's own to decide, or no longer.
_TO_REVIEW = frozenset({"claim", "extend", "release"})


@router.get("/images/{image}")
def show(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Show everything about an image."""
    return _show(request, moderator, image, mode="look")


@router.get("/images/{image}/change")
def show_change(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Show an image whose decision is to be changed."""
    return _show(request, moderator, image, mode="change")


@router.get("/images/{image}/opinion")
def show_blind(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Show an image for a second opinion: the picture, and what the file claims."""
    with moderator.desk() as desk:
        desk.first("SELECT * FROM moderation.look_blind(:image)", image=image)
    return _show(request, moderator, image, mode="opinion", hide=True)


@router.get("/images/{image}/preview")
def preview(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Serve the picture; the database notes who opened it."""
    pictures: Pictures = request.app.state.pictures
    with moderator.desk() as desk:
        opened = desk.first("SELECT * FROM moderation.open_image(:image)", image=image)
    if opened is None:
        raise Refused(f"no image {image}", status=404)
    return Response(pictures.preview(opened), media_type="image/jpeg")


@router.get("/images/{image}/map")
def evidence_map(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Serve the map of what decided, which before a blind look does not exist."""
    pictures: Pictures = request.app.state.pictures
    with moderator.desk() as desk:
        facts = desk.image(image)
        uri = None if is_blind(desk, facts) else facts["evidence_uri"]
    return Response(pictures.map(uri), media_type="image/png")


@router.post("/images/{image}/opinion")
def opinion(
    moderator: SignedIn,
    image: UUID,
    choice: Annotated[str, Form()],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Record a second opinion."""
    with moderator.desk() as desk:
        judge(desk, "opinion", image, choice, note)
    return RedirectResponse(f"/images/{image}", 303)


@router.post("/images/{image}/change")
def change(
    moderator: SignedIn,
    image: UUID,
    choice: Annotated[str, Form()],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Replace one's own decision of the last minutes."""
    with moderator.desk() as desk:
        judge(desk, "undo", image, choice, note)
    return RedirectResponse("/", 303)


@router.post("/images/{image}/{asked}")
def ask(
    moderator: SignedIn,
    image: UUID,
    asked: Literal[
        "claim", "extend", "release", "appeal", "review", "report", "hold", "lift", "erasure"
    ],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Ask for something that needs no more than a note."""
    values = {"note": note.strip() or None} if ":note" in ASKED[asked] else {}
    with moderator.desk() as desk:
        desk.value(ASKED[asked], image=image, **values)
    return RedirectResponse("/" if asked in _TO_REVIEW else f"/images/{image}", 303)


def _show(
    request: Request, moderator: Moderator, image: UUID, *, mode: str, hide: bool = False
) -> Response:
    with moderator.desk() as desk:
        values: dict[str, Any] = {"me": desk.me, **view_of(desk, image, hide=hide)}
    layers = request.app.state.pictures.layers_of(values["facts"])
    return page(request, "image.html", layers=layers, mode=mode, **values)
