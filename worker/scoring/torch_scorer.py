"""The real scorer: a bundle on a torch device; translates torch errors for the device thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from detection.detector import Detector
from worker.scoring.interface import DeviceLost, DeviceMemoryExceeded, Golden

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from detection.score import Score
    from worker.settings import Scoring


class TorchScorer:
    """Scores with a `detection.detector.Detector`."""

    def __init__(self, detector: Detector, *, device: str) -> None:
        self._detector = detector
        self.device = device
        self.dtype = detector.arithmetic
        self.model_version = detector.model_version
        self.intake_versions = detector.bundle.manifest.intake_versions

    @classmethod
    def load(cls, settings: Scoring) -> TorchScorer:
        """Load the bundle that the settings name onto the device that they name."""
        device = choose_device(settings.device)
        name = "cuda:0" if device == "cuda" else device
        detector = Detector.load(settings.bundle, device=name, generators=settings.generators)
        return cls(detector, device=name)

    def golden(self) -> Golden:
        """Return the bundle's own golden image and logits."""
        image, branches = self._detector.golden()
        return Golden(image=image, branches=branches, tolerance=self._detector.golden_tolerance)

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Score a batch; translates errors of torch to `DeviceMemoryExceeded` and `DeviceLost`."""
        try:
            return self._detector.score(images)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceMemoryExceeded from error
        except torch.AcceleratorError as error:
            raise DeviceLost from error
        except RuntimeError as error:
            # What the allocator of a CPU says; it has no class of its own.
            if "can't allocate memory" in str(error):
                raise DeviceMemoryExceeded from error
            raise


def choose_device(name: str) -> str:
    """Return the torch device of that name; "auto" is "cuda" where there is one, else "cpu"."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
