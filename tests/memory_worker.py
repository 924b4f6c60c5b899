"""A real worker process with the in-memory scorer, for tests: `python -m tests.memory_worker`.

Its settings come from the environment, as those of `unlatent worker` do. `FAULTS` in the pixels:
the top left pixel of a losslessly stored image chooses what the forward pass does with it.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from worker.logs import configure
from worker.scorer_memory import MemoryScorer
from worker.service import run_worker
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

#: Top left pixels that make the forward pass raise, die or hang.
RAISE = (255, 1, 1)
DIE = (255, 1, 2)
HANG = (255, 1, 3)


def misbehave(images: Sequence[NDArray[np.uint8]]) -> None:
    """Do to the batch what the worst of its images says."""
    for image in images:
        pixel = tuple(int(value) for value in image[0, 0])
        if pixel == RAISE:
            message = "this image breaks the detector"
            raise ZeroDivisionError(message)
        if pixel == DIE:
            os._exit(139)
        if pixel == HANG:
            time.sleep(3600)


def main() -> int:
    """Run the worker until it is told to stop."""
    settings = load_settings()
    configure(settings.observability)
    return run_worker(settings, load_scorer=lambda _: MemoryScorer(before=misbehave))


if __name__ == "__main__":
    sys.exit(main())
