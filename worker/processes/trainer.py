"""The trainer: one spawned process a message, so that no run inherits memory or a device.

A tick first takes over a run that nobody holds, then starts one that is due. However many beats and
trainers there are, the slot and the lease let one run through.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from celery import signals

from training.collect import CollectPolicy
from worker.database.engine import build_engine
from worker.models.registry import ModelsRegistry
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.retraining.dataset_store import open_storage
from worker.retraining.promotion import promote_when_due
from worker.retraining.runs import Runs
from worker.retraining.stage_runner import run_stages
from worker.retraining.triggers import due
from worker.settings import child_environment
from worker.telemetry.health import TRAINER_ALIVE, Health, pulse

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.retraining.runs import Run
    from worker.settings import Settings, Training

_log = structlog.get_logger(__name__)

#: A spawned process imports torch before it reports in.
_SPAWN_TIMEOUT_S = 120.0


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
    for slot in due(engine, settings, policy(settings)):
        run = runs.begin(slot.slot, trigger=slot.trigger)
        if run is not None:
            _log.info("run_started", run=run.id, slot=slot.slot)
            return run
    return None


def policy(settings: Training) -> CollectPolicy:
    """Return who may teach, and how much, by the settings."""
    return CollectPolicy(
        sources=frozenset(settings.sources),
        trusted_sources=frozenset(settings.trusted_sources),
        max_per_source=settings.max_per_source,
        max_per_uploader=settings.max_per_uploader,
        max_per_moderator=settings.max_per_moderator,
        evaluation=settings.evaluation_share,
        calibration=settings.calibration_share,
    )


def run_trainer(settings: Settings) -> int:
    """Take training runs until told to stop; returns the exit status of the process."""
    health = Health(settings.observability.run_dir)
    # Spawned processes read their settings anew: these, wherever they came from.
    os.environ.update(child_environment(settings))

    def ready(**_: object) -> None:
        health.ready()
        _log.info("trainer_ready")

    def set_up_no_logging(**_: object) -> None:
        """Be connected: Celery sets up logging only when nobody else does."""

    signals.setup_logging.connect(set_up_no_logging)
    signals.worker_ready.connect(ready)
    app = build_app(settings)
    app.conf.update(
        include=["worker.retraining.tasks"],
        worker_pool_start_method="spawn",  # a forked process cannot use the device
        worker_proc_alive_timeout=_SPAWN_TIMEOUT_S,
        worker_max_tasks_per_child=1,
    )
    worker = app.Worker(
        pool="prefork",
        concurrency=1,
        queues=[queues.TRAIN],
        hostname=f"unlatent-trainer@{socket.gethostname()}",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    with pulse(settings.observability.run_dir / TRAINER_ALIVE):
        worker.start()
    return worker.exitcode or 0
