"""A trainer process for kill tests: `python -m tests.support.processes.training_process MARKS`.

Its two stages note each start in the file MARKS; the second one never ends.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.database.engine import build_engine
from worker.retraining.runs import Runs
from worker.retraining.stage_runner import run_stages
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.retraining.stage_runner import Progress


class Marked:
    """A stage that notes its start, and ends or hangs."""

    def __init__(self, name: str, marks: Path, *, hangs: bool) -> None:
        self.name, self._marks, self._hangs = name, marks, hangs

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Note the start."""
        with self._marks.open("a") as file:
            file.write(f"{self.name} {sorted(progress.facts)}\n")
        while self._hangs:
            time.sleep(1)
        return {"left by": self.name}


def stages(marks: Path, *, hangs: bool) -> list[Marked]:
    """Both stages."""
    return [Marked("first", marks, hangs=False), Marked("second", marks, hangs=hangs)]


def main() -> None:
    """Begin the run of a slot and hang in its second stage."""
    engine = build_engine(load_settings().postgres)
    runs = Runs(engine, holder="killed", lease=timedelta(seconds=2))
    run = runs.begin("slot", trigger="test")
    assert run is not None
    run_stages(run, stages(Path(sys.argv[1]), hangs=True), runs)


if __name__ == "__main__":
    main()
