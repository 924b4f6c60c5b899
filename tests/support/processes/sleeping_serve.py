"""A real `unlatent serve` whose forward pass sleeps: `python -m …sleeping_serve [SECONDS]`.

Its settings come from the environment, as those of the command do.
"""

from __future__ import annotations

import sys
import time

from worker.processes.serve import run_serve
from worker.scoring.memory import MemoryScorer
from worker.settings import load_settings
from worker.telemetry.logs import configure


def main() -> None:
    """Serve until told to stop."""
    image_s = float(sys.argv[1]) if sys.argv[1:] else 0.0
    settings = load_settings()
    configure(settings.observability)
    scorer = MemoryScorer(before=lambda images: time.sleep(image_s * len(images)))
    run_serve(settings, load_scorer=lambda _: scorer)


if __name__ == "__main__":
    main()
