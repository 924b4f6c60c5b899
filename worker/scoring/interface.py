"""The scorer seam: decoded images in, scores out; one device thread calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from detection.errors import UnlatentError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from detection.score import Score


class DeviceMemoryExceeded(UnlatentError):
    """The batch does not fit into the device's memory; a smaller one may."""


class DeviceLost(UnlatentError):
    """The device failed for good; only a new process gets it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """An image, uint8 (H, W, 3), and the logits that the model's branches must give it.

    A logit of size x may be off by `tolerance` times the larger of 1 and |x|.
    """

    image: NDArray[np.uint8]
    branches: Mapping[str, float]
    tolerance: float


class Scorer(Protocol):
    """Scores batches of decoded images with one model version."""

    @property
    def model_version(self) -> str:
        """Digest of the bundle that scores."""

    @property
    def intake_versions(self) -> Collection[int]:
        """Versions of intake that the thresholds of that bundle hold for."""

    @property
    def device(self) -> str:
        """Where the forward pass runs, for example "cpu" or "cuda:0"."""

    @property
    def dtype(self) -> str:
        """Arithmetic of the forward pass, "float32" or "bfloat16": the bundle states it."""

    def golden(self) -> Golden:
        """Return the image that tells a sound device and sound weights from broken ones."""

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Score RGB images, each uint8 (H, W, 3) and at least 64 pixels a side, in their order.

        Raises `DeviceMemoryExceeded` and `DeviceLost`; anything else is a fault of an image.
        """
