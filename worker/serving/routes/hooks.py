"""Hooks that other servers call before they store an upload."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from detection.errors import UnlatentError
from detection.score import Label
from worker.serving.inputs import answering, service_of, wait_s
from worker.serving.routes import problems

_log = structlog.get_logger(__name__)

router = APIRouter()

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/hooks/pict-rs/{key}",
    operation_id="pictrs_hook",
    summary="Say whether pict-rs may store an upload.",
    openapi_extra=_BODY,
    response_class=Response,
    responses={
        200: {"description": "Store it."},
        406: {"description": "Refuse it: the label is `generated`, or the check failed."},
        **problems(401, 422),
    },
)
async def pictrs(request: Request, key: str) -> Response:
    """Answer pict-rs' external validation: 200 stores the upload, 406 refuses it.

    Of an upload whose check fails the settings say which; it is counted and logged.
    """
    service = service_of(request)
    service.keys.source_of(key)
    declared = request.headers.get("content-type")
    try:
        async with answering(request):
            record = await service.checker.check(
                await request.body(), declared_type=declared, wait_s=wait_s(request)
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, the settings say what it means
        stored = service.settings.hooks_fail_open
        outcome = "failed_open" if stored else "failed_closed"
        foreseen = isinstance(error, UnlatentError | ClientDisconnect)
        _log.warning(
            "hook_check_failed",
            outcome=outcome,
            error=f"{type(error).__name__}: {error}",
            exc_info=None if foreseen else error,
        )
    else:
        stored = record["label"] != Label.GENERATED
        outcome = "stored" if stored else "refused"
    service.http_metrics.hooks.labels("pict-rs", outcome).inc()
    return Response(status_code=200 if stored else 406)
