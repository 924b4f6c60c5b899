"""The in-memory twin of the scorer: a deterministic answer without a model, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detection.intake.version import INTAKE_VERSION
from detection.score import Label, Score
from worker.scoring.interface import Golden

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_UNSURE = (0.4, 0.6)


class MemoryScorer:
    """Calls an image's mean brightness, 0 to 1, its probability.

    `before` is called with each batch before it is scored and may raise or block in the scorer's
    place; `batches` remembers the size of each batch.
    """

    device = "cpu"
    dtype = "float32"
    intake_versions = (INTAKE_VERSION,)

    def __init__(
        self,
        model_version: str = "memory-1",
        *,
        before: Callable[[Sequence[NDArray[np.uint8]]], None] | None = None,
    ) -> None:
        self.model_version = model_version
        self.batches: list[int] = []
        self._before = before

    def golden(self) -> Golden:
        """Return a grey image."""
        image = np.full((64, 64, 3), 51, np.uint8)
        return Golden(image=image, branches={"brightness": 0.2}, tolerance=1e-6)

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Score images by their brightness."""
        self.batches.append(len(images))
        if self._before is not None:
            self._before(images)
        return [_score(float(image.mean()) / 255) for image in images]


def _score(probability: float) -> Score:
    low, high = _UNSURE
    if probability < low:
        label = Label.REAL
    elif probability > high:
        label = Label.GENERATED
    else:
        label = Label.UNSURE
    return Score(
        probability=probability,
        label=label,
        branches={"brightness": probability},
        decided_by="brightness",
        operating_point="fpr=0.01",
        prior=0.5,
    )
