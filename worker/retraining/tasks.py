"""The Celery task of the queue `train`; imported by trainers only."""

from __future__ import annotations

from celery import shared_task

from worker.processes.trainer import tick
from worker.queue import names as queues
from worker.settings import load_settings
from worker.telemetry.logs import configure


@shared_task(
    name=queues.RETRAIN_TASK,
    acks_late=False,  # a run outlives the visibility timeout; its lease brings it back
    ignore_result=True,
)
def retrain() -> None:
    """Go on with an abandoned run, or start one that is due."""
    settings = load_settings()  # a spawned process has the environment and nothing else
    configure(settings.observability)
    tick(settings)
