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
    from collections.abc import Callable, Mapping

    from celery import Celery
    from celery.app.task import Context

    from worker.scoring.pipeline import Pipeline
    from worker.telemetry.metrics import Metrics
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
    periodic: Mapping[str, Callable[[], object]],
    metrics: Metrics,
    tracer: Tracer = NO_TRACER,
) -> None:
    """Give a worker's application its tasks; `periodic` has what beat asks for, by task name."""
    # A retry waits unacknowledged: beyond the visibility timeout it would be there twice.
    visibility_timeout_s: int = app.conf.broker_transport_options["visibility_timeout"]
    retrying = _RETRYING | {"retry_backoff_max": min(_LONGEST_WAIT_S, visibility_timeout_s // 2)}

    @app.task(name=queues.SCORE_TASK, **retrying)
    def score(image_id: str) -> None:
        _check(pipeline.score, image_id, tracer, score.request)

    @app.task(name=queues.RESCORE_TASK, **retrying)
    def rescore(image_id: str) -> None:
        _check(pipeline.rescore, image_id, tracer, rescore.request)

    for name in queues.PERIODIC:
        # Not retried: the next tick is.
        task = app.task(name=name, shared=False, throws=(TransientError,))
        task(_counted(name, periodic[name], metrics))


def _counted(name: str, work: Callable[[], object], metrics: Metrics) -> Callable[[], None]:
    """Return the work as a task that counts how it ended, for an alert when it keeps failing."""
    task = name.rpartition(".")[2]
    failures = metrics.periodic_failures.labels(task)  # there from the first scrape on

    def run() -> None:
        try:
            work()
        except Exception:
            failures.inc()
            raise
        metrics.periodic_runs.labels(task).inc()

    return run


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
