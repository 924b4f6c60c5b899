"""The scorer seam: decoded images in, scores out; one device thread calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from detection.score import Score


class Scorer(Protocol):
    """Scores batches of decoded images with one model version."""

    @property
    def model_version(self) -> str:
        """Digest of the bundle that scores."""

    @property
    def device(self) -> str:
        """Where the forward pass runs, for example "cpu" or "cuda:0"."""

    @property
    def dtype(self) -> str:
        """Arithmetic of the forward pass, for example "float32"."""

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Score RGB images, each uint8 (H, W, 3) and at least 64 pixels a side, in their order."""
