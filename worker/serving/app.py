"""The application: its routes, what every request passes, and how errors are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from worker.serving.limits import Limits
from worker.serving.problems import RequestRefused, answer_errors
from worker.serving.routes import check, hooks, images, probes

if TYPE_CHECKING:
    from worker.serving.service import Service

_DESCRIPTION = (
    "Did a camera take this picture, or did a latent diffusion model make it? A score is evidence"
    " and no proof; docs/api.md says what the fields mean."
)


def build_app(service: Service) -> FastAPI:
    """Return the service over its parts; the caller closes them."""
    app = FastAPI(
        title="unlatent",
        description=_DESCRIPTION,
        version="1",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    answer_errors(app)
    app.add_middleware(
        Limits,
        requests=service.settings.requests,
        max_bytes=service.max_bytes,
        in_flight_bytes=service.in_flight_bytes,
        timeout_s=service.settings.timeout_s / 2,
        local_only=not service.keys.required,
        metrics=service.http_metrics,
    )
    for router in (check.router, hooks.router, probes.router):
        app.include_router(router)
    if service.uploads is not None:
        app.include_router(images.router)
    else:
        for path in ("/v1/images", "/v1/images/{rest:path}", "/v1/batches"):
            app.add_api_route(path, no_ledger, methods=["GET", "POST"], include_in_schema=False)
    return app


async def no_ledger() -> None:
    """Say why there are no uploads here."""
    raise RequestRefused(
        "This service takes no uploads: UNLATENT_HTTP__LEDGER is false.",
        status=404,
        reason="no_ledger",
    )
