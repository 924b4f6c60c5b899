"""Liveness and readiness files that probes look at.

`worker.alive` is touched by the device thread; `worker.ready` is there while messages are taken.
`bridge.alive` and `beat.alive` are touched in every round of those processes, `trainer.alive` while
that process is there.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALIVE = "worker.alive"
READY = "worker.ready"
BRIDGE_ALIVE = "bridge.alive"
BEAT_ALIVE = "beat.alive"
TRAINER_ALIVE = "trainer.alive"

_PULSE_S = 5.0


class Health:
    """The two files in one folder."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._alive = run_dir / ALIVE
        self._ready = run_dir / READY
        # Left by a process that died in the same folder, they would speak for this one.
        self._alive.unlink(missing_ok=True)
        self.unready()

    def beat(self) -> None:
        """Note that the device thread makes progress."""
        self._alive.touch()

    def ready(self) -> None:
        """Mark the worker as ready: the model is loaded and messages are taken."""
        self._ready.touch()

    def unready(self) -> None:
        """Mark the worker as not ready."""
        self._ready.unlink(missing_ok=True)


@contextmanager
def pulse(file: Path) -> Iterator[None]:
    """Touch a file every few seconds, from a thread of its own, until the block is left."""
    file.parent.mkdir(parents=True, exist_ok=True)
    left = threading.Event()

    def beat() -> None:
        file.touch()
        while not left.wait(_PULSE_S):
            file.touch()

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        file.unlink(missing_ok=True)
