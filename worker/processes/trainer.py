"""The trainer: one spawned process a message, so that no run inherits memory or a device."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import structlog
from celery import signals

from worker.queue import names as queues
from worker.queue.app import build_app
from worker.settings import child_environment
from worker.telemetry.health import TRAINER_ALIVE, Health, pulse
from worker.telemetry.logs import leave_logging_alone
from worker.telemetry.start_steps import start_step

if TYPE_CHECKING:
    from worker.settings import Settings

_log = structlog.get_logger(__name__)

#: A spawned process imports torch before it reports in.
_SPAWN_TIMEOUT_S = 120.0


def run_trainer(settings: Settings) -> int:
    """Take training runs until told to stop; returns the exit status of the process."""
    health = Health(settings.observability.run_dir)
    # Spawned processes read their settings again: hand these on, wherever they came from.
    os.environ.update(child_environment(settings))

    def ready(**_: object) -> None:
        health.ready()
        _log.info("trainer_ready")

    signals.setup_logging.connect(leave_logging_alone)
    signals.worker_ready.connect(ready)
    with start_step("tasks"):
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
