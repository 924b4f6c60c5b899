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

from training.alignment import AlignmentConfig
from training.audit import Limits
from training.collect import CollectPolicy
from training.gate import GateLimits
from worker import queues
from worker.bundle_store import BundleStore
from worker.celery_app import build_app
from worker.database import build_engine
from worker.health import Health
from worker.models_registry import ModelsRegistry
from worker.retraining.challenge import Forge, challenge_stages
from worker.retraining.champions import Champions
from worker.retraining.dataset_store import open_storage
from worker.retraining.promotion import promote_when_due
from worker.retraining.runner import run_stages
from worker.retraining.runs import Runs
from worker.retraining.stages import Bench, Tools, dataset_stages
from worker.retraining.triggers import due
from worker.settings import child_environment

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.retraining.runs import Run
    from worker.settings import Settings, Training
    from worker.storage import Storage

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
        champions = Champions(
            registry=ModelsRegistry(engine),
            bundles=BundleStore(storage, settings.training.bucket),
            default=settings.scoring.bundle,
            cache=settings.scoring.cache,
        )
        promote_when_due(engine, champions.registry, settings.training)
        run = runs.resume() or _begin(engine, settings.training, runs)
        if run is not None:
            place = bench(settings, engine, storage, champions)
            stages = [
                *dataset_stages(place),
                *challenge_stages(forge(settings, place, champions)),
            ]
            run_stages(run, stages, runs)
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


def bench(settings: Settings, engine: Engine, storage: Storage, champions: Champions) -> Bench:
    """Put the surroundings of the data set's stages together."""
    training = settings.training
    return Bench(
        engine=engine,
        storage=storage,
        bucket=training.bucket,
        policy=policy(training),
        max_bytes=settings.intake.max_bytes,
        load_tools=lambda: load_tools(champions.current(), _device(settings)),
        alignment=AlignmentConfig(
            shard_images=training.shard_images, batch_size=training.batch_size
        ),
        limits=Limits(),
    )


def forge(settings: Settings, place: Bench, champions: Champions) -> Forge:
    """Put the surroundings of the challenger's stages together."""
    from training.challenger import ChallengerRecipe

    training = settings.training
    return Forge(
        bench=place,
        champions=champions,
        work_dir=training.work_dir,
        device=_device(settings),
        recipe=ChallengerRecipe().at_most(training.steps),
        limits=GateLimits(),
    )


def load_tools(champion: Bundle, device: str) -> Tools:
    """Load the aligner and the feature space of the champion."""
    from training.features import BundleFeatures
    from training.round_trip import bundle_round_trip

    features = BundleFeatures(champion, device=device)
    aligner = bundle_round_trip(champion, device=device)
    return Tools(aligners=[aligner], features=features, space=features.name)


def _device(settings: Settings) -> str:
    import torch

    if settings.scoring.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.scoring.device


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
    worker.start()
    return worker.exitcode or 0
