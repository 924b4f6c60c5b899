"""One image without a claim, and its pictures."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request, Response

from worker.console.desk import Refused
from worker.console.image_view import view_of
from worker.console.pages.signed_in import SignedIn
from worker.console.pictures import Original, Pictures
from worker.console.rendering import page

router = APIRouter()


@router.get("/images/{image}")
def show(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Show everything about an image."""
    with moderator.desk() as desk:
        return page(request, "image.html", me=desk.me, **view_of(desk, image))


@router.get("/images/{image}/preview")
def preview(request: Request, moderator: SignedIn, image: UUID) -> Response:
    """Serve the picture; the database notes who opened it."""
    pictures: Pictures = request.app.state.pictures
    with moderator.desk() as desk:
        found = desk.first(
            "SELECT bucket, key, version_id, etag FROM moderation.open_image(:image)", image=image
        )
    if found is None or found["key"] is None:
        raise Refused("The picture was removed from storage.", status=410)
    return Response(pictures.preview(Original(**found)), media_type="image/webp")
