"""The Celery task of the queue `train` and its body; imported by trainers only.

A tick first takes over a run that nobody holds, then starts one that is due. However many beats and
trainers there are, the slot and the lease let one run through.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from celery import shared_task

from worker.database.engine import build_engine
from worker.models.registry import ModelsRegistry
from worker.queue import names as queues
from worker.retraining.candidates import collect_policy
from worker.retraining.runs import Runs
from worker.retraining.scheduled_promotion import promote_when_due
from worker.retraining.stage_runner import run_stages
from worker.retraining.triggers import due_slots
from worker.settings import load_settings
from worker.storage.s3 import open_storage
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.retraining.runs import Run
    from worker.settings import Settings, Training

_log = structlog.get_logger(__name__)


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


def tick(settings: Settings) -> None:
    """Run what is to be run, to its end."""
    engine = build_engine(settings.postgres, application_name="unlatent-trainer")
    storage = open_storage(settings)
    try:
        runs = Runs(
            engine,
            holder=f"{socket.gethostname()}:{os.getpid()}",
            lease=timedelta(seconds=settings.training.lease_s),
        )
        promote_when_due(engine, ModelsRegistry(engine), settings.training)
        run = runs.resume() or _begin(engine, settings.training, runs)
        if run is not None:
            # Most ticks have nothing to do, and torch is slow to import.
            from worker.retraining.wiring import all_stages

            run_stages(run, all_stages(settings, engine, storage), runs)
    finally:
        storage.close()
        engine.dispose()


def _begin(engine: Engine, settings: Training, runs: Runs) -> Run | None:
    for slot in due_slots(engine, settings, collect_policy(settings)):
        run = runs.begin(slot.slot, trigger=slot.trigger)
        if run is not None:
            _log.info("run_started", run=run.id, slot=slot.slot)
            return run
    return None
