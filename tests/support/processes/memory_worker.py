"""A real worker process with the in-memory scorer, for tests.

Its settings come from the environment, as those of `unlatent worker` do. The top left pixel of a
losslessly stored image chooses what the forward pass does with it. The settings' own bundle is
called memory-1; a registered one has its digest, and a golden image that scores wrong when its name
says that it is broken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from detection.errors import UnlatentError
from worker.processes.worker import run_worker
from worker.scoring.memory import MemoryScorer
from worker.settings import Scoring, load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from worker.scoring.interface import Golden

#: Top left pixels that make the forward pass raise, die or hang.
RAISE = (255, 1, 1)
DIE = (255, 1, 2)
HANG = (255, 1, 3)


class BrokenScorer(MemoryScorer):
    """A scorer whose golden image scores wrong."""

    def golden(self) -> Golden:
        """Return the golden image with another score than it gets."""
        return dataclasses.replace(super().golden(), branches={"brightness": 0.9})


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


def load(scoring: Scoring) -> MemoryScorer:
    """Return a scorer that goes by the version of the bundle."""
    if scoring.bundle == Scoring().bundle:
        return MemoryScorer(before=misbehave)
    manifest = (Path(scoring.bundle) / "bundle.json").read_bytes()
    kind = BrokenScorer if "broken" in json.loads(manifest)["name"] else MemoryScorer
    return kind(hashlib.sha256(manifest).hexdigest(), before=misbehave)


def main() -> int:
    """Run the worker until it is told to stop."""
    settings = load_settings()
    configure(settings.observability)
    broken = sys.argv[1:] == ["--broken"]
    try:
        return run_worker(settings, load_scorer=(lambda _: BrokenScorer()) if broken else load)
    except UnlatentError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
