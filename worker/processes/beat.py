"""The beat process: it only sends the scheduled messages, and needs no ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import signals

from worker.queue.app import build_app
from worker.queue.beat_scheduler import HeartbeatScheduler
from worker.telemetry.health import BEAT_ALIVE
from worker.telemetry.logs import leave_logging_alone
from worker.telemetry.start_steps import start_step

if TYPE_CHECKING:
    from worker.settings import Settings


def run_beat(settings: Settings) -> None:
    """Send the scheduled messages until told to stop."""
    settings.observability.run_dir.mkdir(parents=True, exist_ok=True)
    (settings.observability.run_dir / BEAT_ALIVE).unlink(missing_ok=True)
    signals.setup_logging.connect(leave_logging_alone)
    with start_step("schedule"):
        beat = build_app(settings).Beat(scheduler_cls=HeartbeatScheduler, quiet=True)
    beat.run()
