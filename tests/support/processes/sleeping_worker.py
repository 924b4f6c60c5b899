"""A real worker whose forward pass sleeps: `python -m …sleeping_worker SECONDS`.

SECONDS is the device time of one image; a batch sleeps for all of its images. Everything else is
what `unlatent worker` does.
"""

from __future__ import annotations

import sys
import time

from worker.processes.worker import run_worker
from worker.scoring.memory import MemoryScorer
from worker.settings import load_settings
from worker.telemetry.logs import configure


def main() -> int:
    """Run the worker until it is told to stop."""
    image_s = float(sys.argv[1])
    settings = load_settings()
    configure(settings.observability)
    scorer = MemoryScorer(before=lambda images: time.sleep(image_s * len(images)))
    return run_worker(settings, load_scorer=lambda _: scorer)


if __name__ == "__main__":
    sys.exit(main())
