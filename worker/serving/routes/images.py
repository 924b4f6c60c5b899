"""`/v1/images` and `/v1/batches`: uploads into the ledger, and where they stand."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response

from detection.errors import PermanentError
from worker.ingest.events import EventFieldInvalid, EventTooLarge
from worker.ingest.shapes import fields
from worker.ledger.interface import State, Upload
from worker.serving import answers
from worker.serving.inputs import Source, in_threads, json_of, service_of
from worker.serving.problems import RequestRefused, problem_of
from worker.serving.routes import body_of, problems

if TYPE_CHECKING:
    from worker.serving.uploads import Accepted, Uploads

router = APIRouter()

#: How often an image that somebody waits for is looked at.
_LOOK_S = 0.25
#: Lines and bytes of one batch.
MAX_LINES = 1000
MAX_BATCH_BYTES = 4 * 2**20
_JSON_LINES = "application/jsonl"
_LINES = frozenset({_JSON_LINES, "application/x-ndjson"})
_BATCH = {
    "requestBody": {
        "required": True,
        "description": f"One upload a line, at most {MAX_LINES}, each with its etag or version.",
        "content": {_JSON_LINES: {"schema": {"type": "string"}}},
    },
    "responses": {
        "200": {
            "description": "One line a line: the image's id and state, or a problem.",
            "content": {_JSON_LINES: {"schema": {"type": "string"}}},
        }
    },
}


def uploads_of(request: Request) -> Uploads:
    """Return the ledger's side of the service: these routes exist only with it."""
    return cast("Uploads", service_of(request).uploads)


def note_of(said: answers.Note) -> str | None:
    """Return a text that the ledger can hold; raises `EventFieldInvalid` for another."""
    return fields.text({"text": said.text}, "text", limit=4 * 4000)


@router.post(
    "/v1/images",
    operation_id="add_image",
    summary="Take an upload into the ledger.",
    openapi_extra=body_of(answers.NewImage),
    status_code=202,
    response_model=answers.Accepted,
    responses=problems(401, 403, 404, 408, 409, 413, 415, 422, 503),
)
async def add(
    request: Request,
    source: Source,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> JSONResponse:
    """Answer 202 once the upload is committed: from then on it ends in a terminal state."""
    upload = await json_of(request, answers.NewImage)
    accepted = await in_threads(
        service_of(request).ledger_threads,
        uploads_of(request).add,
        upload.model_dump(exclude_none=True),
        source=source,
        idempotency_key=idempotency_key,
    )
    location = {"Location": f"/v1/images/{accepted.image_id}"}
    return JSONResponse(_written(accepted), 202, headers=location)


@router.get(
    "/v1/images/{image_id}",
    operation_id="get_image",
    summary="Say where an upload stands.",
    response_model=answers.Image,
    responses=problems(401, 404, 422, 503),
)
async def get(
    request: Request,
    source: Source,
    image_id: UUID,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            description="Seconds to wait for a terminal state, at most the time of an answer.",
        ),
    ] = 0.0,
) -> JSONResponse:
    """Answer at once, or as soon as the image is no longer pending, or after `wait` seconds."""
    service, uploads = service_of(request), uploads_of(request)
    until = time.monotonic() + min(wait, service.settings.timeout_s)
    with service.waiting as may_wait:
        while True:
            found = await in_threads(service.ledger_threads, uploads.find, image_id, source=source)
            left_s = until - time.monotonic()
            if found["state"] != State.PENDING or left_s <= 0 or not may_wait:
                return JSONResponse(found)
            await asyncio.sleep(min(_LOOK_S, left_s))


@router.post(
    "/v1/images/{image_id}/appeals",
    operation_id="appeal",
    summary="Open an appeal against what was said of an image.",
    openapi_extra=body_of(answers.Note),
    status_code=201,
    response_model=answers.Appeal,
    responses=problems(401, 404, 408, 409, 413, 415, 422, 503),
)
async def appeal(request: Request, source: Source, image_id: UUID) -> JSONResponse:
    """Put the image before somebody who did not decide it."""
    said = note_of(await json_of(request, answers.Note))
    threads, uploads = service_of(request).ledger_threads, uploads_of(request)
    opened = await in_threads(threads, uploads.appeal, image_id, said, source=source)
    return JSONResponse({"appeal_id": str(opened)}, 201)


@router.post(
    "/v1/images/{image_id}/reports",
    operation_id="report",
    summary="Have a person look at an image.",
    openapi_extra=body_of(answers.Note),
    status_code=202,
    response_class=Response,
    responses=problems(401, 404, 408, 409, 413, 415, 422, 503),
)
async def report(request: Request, source: Source, image_id: UUID) -> Response:
    """Put the image into the queue `report`; one with an open appeal stays in that queue."""
    said = note_of(await json_of(request, answers.Note))
    threads, uploads = service_of(request).ledger_threads, uploads_of(request)
    await in_threads(threads, uploads.report, image_id, said, source=source)
    return Response(status_code=202)


@router.post(
    "/v1/batches",
    operation_id="add_batch",
    summary="Take many uploads into the ledger.",
    openapi_extra=_BATCH,
    response_class=Response,
    responses=problems(401, 408, 413, 415, 422, 503),
)
async def add_batch(request: Request, source: Source) -> Response:
    """Commit the uploads of all lines that can be used, in one transaction."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _LINES:
        raise RequestRefused(
            f"The content type must be {_JSON_LINES}.", status=415, reason="request_invalid"
        )
    body = await request.body()
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(body) > MAX_BATCH_BYTES or len(lines) > MAX_LINES:
        raise EventTooLarge(f"a batch has at most {MAX_LINES} lines and {MAX_BATCH_BYTES} bytes")
    threads, uploads = service_of(request).ledger_threads, uploads_of(request)
    told = await in_threads(threads, _take, uploads, lines, source)
    written = b"".join(json.dumps(one).encode() + b"\n" for one in told)
    return Response(written, media_type=_JSON_LINES)


def _take(uploads: Uploads, lines: list[bytes], source: str | None) -> list[dict[str, Any]]:
    read = [_read(uploads, line, source) for line in lines]
    found = [one for one in read if isinstance(one, Upload)]
    accepted = iter(uploads.register(found) if found else ())
    return [_answered(next(accepted)) if isinstance(one, Upload) else one for one in read]


def _answered(outcome: Accepted | RequestRefused) -> dict[str, Any]:
    return _problem(outcome) if isinstance(outcome, RequestRefused) else _written(outcome)


def _problem(error: Exception) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(bytes(problem_of(error).body)))


def _read(uploads: Uploads, line: bytes, source: str | None) -> Upload | dict[str, Any]:
    try:
        told = fields.mapping(fields.load(line), "the line")
        upload = uploads.read(told, source=source)
        if not upload.etag and not upload.version_id:
            raise EventFieldInvalid("in a batch an upload needs its etag or its version_id")
    except (PermanentError, RequestRefused) as error:
        return _problem(error)
    return upload


def _written(accepted: Accepted) -> dict[str, Any]:
    return {"id": str(accepted.image_id), "state": accepted.state}
