"""The application: routes, what every request passes, and how errors are told."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from detection.errors import PermanentError, TransientError
from worker.console.desk import Refused
from worker.console.pages import ROUTERS, NotSignedIn
from worker.console.protection import Protection
from worker.console.rendering import STATIC, page

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from worker.console.identity import Identity
    from worker.console.pictures import Pictures

_log = structlog.get_logger(__name__)


def build_app(identity: Identity, pictures: Pictures) -> FastAPI:
    """Return the console over one identity and one store of pictures; the caller closes both."""
    app = FastAPI(title="unlatent console", openapi_url=None)
    app.state.identity = identity
    app.state.pictures = pictures
    app.add_middleware(Protection)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_api_route("/healthz", lambda: PlainTextResponse("ok\n"), include_in_schema=False)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(NotSignedIn, _not_signed_in)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(PermanentError, _unusable)
    app.add_exception_handler(TransientError, _away)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _malformed)
    return app


def _not_signed_in(request: Request, _error: Exception) -> Response:
    if not request.app.state.identity.has_form:
        words = "The proxy before this console did not say who asks."
        return page(request, "error.html", status=401, words=words, hint=None)
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
    words = "You are not signed in, or your session has ended."
    return page(request, "error.html", status=401, words=words, hint="Sign in, then do it again.")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - what this handler is registered for
    return page(request, "error.html", status=error.status, words=str(error), hint=error.hint)


def _unusable(request: Request, error: Exception) -> Response:
    words = "The picture cannot be shown."
    return page(request, "error.html", status=422, words=words, hint=str(error))


def _away(request: Request, error: Exception) -> Response:
    _log.warning("request_failed", path=request.url.path, error=str(error))
    words = "The database, the storage or a decoder does not answer."
    return page(
        request, "error.html", status=503, words=words, hint="Nothing was changed: try again."
    )


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what this handler is registered for
    words = "There is no such page." if error.status_code == 404 else str(error.detail)
    return page(request, "error.html", status=error.status_code, words=words, hint=None)


def _malformed(request: Request, _error: Exception) -> Response:
    words = "The form is not complete, or the address is none."
    return page(request, "error.html", status=422, words=words, hint=None)
