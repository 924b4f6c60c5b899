"""`POST /v1/check`: an image in, its score out; nothing is kept."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from worker.serving import answers
from worker.serving.inputs import Source, answering, image_of, service_of, wait_s
from worker.serving.problems import RequestRefused
from worker.serving.routes import problems

router = APIRouter()

_BODY = {
    "requestBody": {
        "required": True,
        "description": "The image itself, a form with it, or an object of a configured bucket.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {"schema": answers.ObjectAddress.model_json_schema()},
        },
    },
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "description": "`wait=N`: answer within N seconds, or 503 (RFC 7240).",
            "schema": {"type": "string"},
        }
    ],
}


@router.post(
    "/v1/check",
    operation_id="check",
    summary="Check one image.",
    openapi_extra=_BODY,
    response_model=answers.Check,
    responses=problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
)
async def check(
    request: Request,
    source: Source,
    *,
    evidence: Annotated[bool, Query(description="Also answer what to look at.")] = False,
) -> JSONResponse:
    """Score one image; the fields are those of `unlatent check --format jsonl`."""
    del source  # whose it is changes nothing
    if evidence and request.headers.get("content-type", "").startswith("application/json"):
        raise RequestRefused(
            "Evidence shows the picture: it is answered for images that the request holds.",
            status=422,
            reason="request_invalid",
        )
    async with answering(request):
        data, declared = await image_of(request)
        record = await service_of(request).checker.check(
            data, declared_type=declared, wait_s=wait_s(request), evidence=evidence
        )
    return JSONResponse(record)
