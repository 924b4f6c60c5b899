"""Signing in and out, and how one wants pictures shown."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from worker.console.desk import Refused
from worker.console.identity import COOKIE as SESSION
from worker.console.pages.signed_in import SignedIn
from worker.console.preferences import COOKIE, Preferences
from worker.console.rendering import page

router = APIRouter()

_YEAR_S = 365 * 24 * 3600


@router.get("/login")
def login(request: Request, next: str = "/") -> Response:  # noqa: A002 - the parameter's name
    """Show the form."""
    if not request.app.state.identity.has_form:
        raise Refused("Sign in at the proxy before this console.", status=404)
    return page(request, "login.html", next=_local(next), words=None, name="")


@router.post("/login")
def sign_in(
    request: Request,
    name: Annotated[str, Form()],
    password: Annotated[str, Form()],
    next: Annotated[str, Form()] = "/",  # noqa: A002 - the parameter's name
) -> Response:
    """Begin a session."""
    try:
        session_id = request.app.state.identity.sign_in(name, password)
    except Refused as error:
        return page(
            request,
            "login.html",
            status=error.status,
            next=_local(next),
            words=f"{error} {error.hint or ''}",
            name=name,
        )
    response = RedirectResponse(_local(next), 303)
    response.set_cookie(
        SESSION, session_id, secure=True, httponly=True, samesite="strict", path="/"
    )
    return response


@router.post("/logout")
def sign_out(request: Request, moderator: SignedIn) -> Response:
    """End the session."""
    del moderator  # only somebody who is signed in can sign out
    request.app.state.identity.sign_out(request)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(SESSION, secure=True, httponly=True, samesite="strict", path="/")
    return response


@router.get("/settings")
def settings(request: Request, moderator: SignedIn) -> Response:
    """Show the preferences."""
    with moderator.desk() as desk:
        return page(request, "settings.html", me=desk.me, choices=Preferences.choices())


@router.post("/settings")
async def save(request: Request, moderator: SignedIn) -> Response:
    """Keep the preferences in this browser."""
    del moderator
    form = await request.form(max_fields=20, max_files=0)
    chosen = Preferences.of({name: str(value) for name, value in form.items()})
    response = RedirectResponse("/settings", 303)
    response.set_cookie(
        COOKIE, chosen.write(), max_age=_YEAR_S, httponly=True, samesite="strict", path="/"
    )
    return response


def _local(path: str) -> str:
    """Return a path of this site, whatever was asked for."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
