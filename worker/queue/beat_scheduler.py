"""Beat's scheduler, with a heartbeat file that probes look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler

from worker.telemetry.health import BEAT_ALIVE


class HeartbeatScheduler(PersistentScheduler):  # type: ignore[misc]  # Celery is not typed
    """Touches `beat.alive` beside its schedule at every tick."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; return how long to sleep, in seconds."""
        Path(self.schedule_filename).with_name(BEAT_ALIVE).touch()
        wait_s: float = super().tick(*args, **kwargs)
        return wait_s
