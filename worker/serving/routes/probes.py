"""Health, readiness and metrics: for probes and Prometheus, without a key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from worker.serving.inputs import service_of
from worker.serving.problems import problem

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Say whether the device thread makes progress."""
    if service_of(request).alive():
        return PlainTextResponse("ok\n")
    return problem(503, "stuck", "The device thread has made no progress for too long.")


@router.get("/readyz")
async def readyz() -> Response:
    """Say that images are checked: nothing is answered before the model is loaded and proven."""
    return PlainTextResponse("ok\n")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' format."""
    registry = service_of(request).metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
