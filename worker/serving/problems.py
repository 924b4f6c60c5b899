"""What a request that cannot be served is answered: problem details, RFC 9457.

`reason` is the code that the ledger, metrics and filters use too; `type` is a URN made of it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from detection.errors import PermanentError, TransientError, UnlatentError
from detection.intake.errors import (
    NotAnImage,
    TooManyBytes,
    TooManyPixels,
    TypeMismatch,
    UnsupportedFormat,
)
from worker.decoding.pool import DecodeBusy
from worker.ingest.events import BucketNotAllowed, EventTooLarge
from worker.ledger.interface import UnknownImage
from worker.scoring.batcher import BatcherFull
from worker.storage.interface import (
    AccessDenied,
    AddressRefused,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
)

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

_log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
#: After so many seconds a request that met a full queue or an absent service is worth another try.
RETRY_AFTER_S = 1

_STATUS: dict[type[PermanentError], int] = {
    TooManyBytes: 413,
    TooManyPixels: 413,
    ObjectTooLarge: 413,
    EventTooLarge: 413,
    NotAnImage: 415,
    UnsupportedFormat: 415,
    TypeMismatch: 415,
    ObjectMissing: 404,
    UnknownImage: 404,
    AccessDenied: 403,
    AddressRefused: 403,
    BucketNotAllowed: 403,
    ObjectReplaced: 409,
}


class RequestRefused(UnlatentError):
    """The request cannot be served as it is; `status` and `reason` say why."""

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Busy(TransientError):
    """As many requests as this service takes at once are under way; try again."""


class CheckTimeout(TransientError):
    """The image was not checked in the time that the request gave; try again."""


def problem_of(error: Exception) -> Response:  # noqa: PLR0911 - one return a kind of error
    """Return the answer that an error means for whoever asked."""
    if isinstance(error, RequestRefused):
        return problem(error.status, error.reason, str(error))
    if isinstance(error, PermanentError):
        return problem(_STATUS.get(type(error), 422), error.reason, str(error))
    if isinstance(error, TransientError):
        reason = "unavailable"
        if isinstance(error, Busy | BatcherFull | DecodeBusy):
            reason = "busy"
        elif isinstance(error, CheckTimeout):
            reason = "timeout"
        else:
            _log.warning("request_failed", error=f"{type(error).__name__}: {error}")
        return problem(503, reason, str(error))
    if isinstance(error, ClientDisconnect):
        return problem(499, "disconnected", "The connection ended before the request did.")
    if isinstance(error, HTTPException):
        detail = "There is no such page." if error.status_code == 404 else str(error.detail)
        reason = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        answer = problem(error.status_code, reason, detail)
        answer.headers.update(error.headers or {})
        return answer
    if isinstance(error, RequestValidationError):
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return problem(422, "request_invalid", "; ".join(told)[:2000])
    _log.error("request_broke", error=type(error).__name__)
    return problem(500, "internal_error", "The service failed in a way it does not foresee.")


def problem(status: int, reason: str, detail: str) -> Response:
    """Return problem details with our reason; 503 says when to come again, 401 how to sign in."""
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        {
            "type": f"urn:unlatent:problem:{reason}",
            "title": reason.replace("_", " ").capitalize(),
            "status": status,
            "detail": detail,
            "reason": reason,
        },
        status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def answer_errors(app: FastAPI) -> None:
    """Have every error of an application answered so."""

    async def answer(_request: Request, error: Exception) -> Response:
        return problem_of(error)

    for kind in (UnlatentError, HTTPException, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)
