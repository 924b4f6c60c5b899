"""The Celery tasks: ids in, nothing out; all that happens is in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from celery.exceptions import Reject

from detection.errors import TransientError
from worker.queue import names as queues
from worker.storage.interface import StorageForbidden
from worker.telemetry.tracer import NO_TRACER
from worker.telemetry.tracing import check_span

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.app.task import Context

    from worker.queue.sweeper import Sweeper
    from worker.scoring.pipeline import Pipeline
    from worker.telemetry.tracer import Tracer

_log = structlog.get_logger(__name__)

#: Waits of up to 1, 2, 4, 8, 16 s. After the last one the message is dropped; the image stays
#: pending and the sweeper sends the next message for it.
_RETRYING: dict[str, Any] = {
    "shared": False,  # these tasks belong to this application, not to every one in the process
    "autoretry_for": (TransientError,),
    "throws": (TransientError,),
    "max_retries": 5,
    "retry_backoff": 1,
    "retry_jitter": True,
}
_LONGEST_WAIT_S = 30


def register_tasks(
    app: Celery,
    *,
    pipeline: Pipeline,
    sweeper: Sweeper,
    check_breakers: Callable[[], object],
    measure_drift: Callable[[], object],
    tracer: Tracer = NO_TRACER,
) -> None:
    """Give a worker's application its tasks."""
    # A retry waits unacknowledged: beyond the visibility timeout it would be there twice.
    visibility_timeout_s: int = app.conf.broker_transport_options["visibility_timeout"]
    retrying = _RETRYING | {"retry_backoff_max": min(_LONGEST_WAIT_S, visibility_timeout_s // 2)}

    @app.task(name=queues.SCORE_TASK, **retrying)
    def score(image_id: str) -> None:
        _check(pipeline.score, image_id, tracer, score.request)

    @app.task(name=queues.RESCORE_TASK, **retrying)
    def rescore(image_id: str) -> None:
        _check(pipeline.rescore, image_id, tracer, rescore.request)

    # Not retried: the next tick is.
    @app.task(name=queues.SWEEP_TASK, shared=False, throws=(TransientError,))
    def sweep() -> None:
        sweeper.tick()

    @app.task(name=queues.BREAKERS_TASK, shared=False, throws=(TransientError,))
    def look_at_breakers() -> None:
        check_breakers()

    @app.task(name=queues.DRIFT_TASK, shared=False, throws=(TransientError,))
    def look_for_drift() -> None:
        measure_drift()


def _check(check: Callable[[UUID], None], image_id: str, tracer: Tracer, request: Context) -> None:
    with structlog.contextvars.bound_contextvars(image_id=image_id):
        try:
            wanted = UUID(image_id)
        except (ValueError, AttributeError, TypeError):
            _log.error("image_id_invalid")
            return
        headers = request.headers or {}
        try:
            with check_span(tracer, headers, image_id=image_id, retries=request.retries):
                check(wanted)
        except StorageForbidden as error:
            # This worker is paused: the message goes back, for another one or for later.
            raise Reject(str(error), requeue=True) from error
