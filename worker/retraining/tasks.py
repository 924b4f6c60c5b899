"""The Celery task of the queue `train`; imported by trainers only."""

from __future__ import annotations

from celery import shared_task

from worker import queues
from worker.logs import configure
from worker.retraining.trainer import tick
from worker.settings import load_settings


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
