"""The detector: decoded images in, scores out, with one bundle on one device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file

from detection.applicability import inapplicable_reason
from detection.branches import load_branches
from detection.bundle import Arithmetic, Bundle, BundleError, load_bundle
from detection.errors import PermanentError, UnlatentError
from detection.fusion import accusation_distance, assign_label
from detection.reencoding import mild_copies
from detection.score import Label, Score

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.branches import Reading

_Shown = TypeVar("_Shown")

#: Smallest side of an image that can be scored, in pixels.
MIN_SIDE = 64
GOLDEN_TOLERANCE = 2e-3


class ImageTooSmall(PermanentError):
    """The image is smaller than the detector's 64 pixels a side."""

    reason = "too_small"


class NotFinite(UnlatentError):
    """A branch gives no number for the image: the arithmetic overflowed, or the device is broken.

    No `PermanentError`: whoever scores first has to ask whether the golden image still scores.
    """


class Detector:
    """Scores RGB images with one bundle; not thread-safe, so one thread owns it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        generators: Path | None = None,
    ) -> None:
        """Build the branches of a verified bundle on `device`.

        `generators` holds the folders of presets that a bundle may name instead of carrying a
        generator; without it they come from the hub's cache on this machine.
        """
        self.bundle = bundle
        self.device = device
        self.branches = load_branches(bundle, device=device, generators=generators)

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path = "small",
        *,
        device: str = "cpu",
        generators: Path | None = None,
    ) -> Detector:
        """Verify and load a bundle by embedded name or folder; raises `BundleError`."""
        bundle = load_bundle(name_or_folder)
        return cls(bundle, device=device, generators=generators)

    @property
    def model_version(self) -> str:
        """Digest of the bundle."""
        return self.bundle.model_version

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Score RGB images, each uint8 (H, W, 3), of any sizes from 64 pixels a side.

        Raises `ImageTooSmall` naming the size, `ValueError` for another shape or dtype, and
        `NotFinite` rather than label what is no number.
        """
        for image in images:
            _check(image)
        scores = self._score_once(images)
        scores = [self._apply_applicability(*pair) for pair in zip(images, scores, strict=True)]
        if not self.bundle.manifest.policy.steady:
            return scores
        return [self._require_stable_label(*pair) for pair in zip(images, scores, strict=True)]

    def golden(self) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Return the bundle's golden image (H, W, 3) and the branch logits it must get."""
        tensors = load_file(self.bundle.path("golden.safetensors"))
        image = tensors.pop("image").numpy()
        logits = {name.removeprefix("logit."): float(value) for name, value in tensors.items()}
        return image, logits

    @property
    def golden_tolerance(self) -> float:
        """By how much a golden logit may be off: bfloat16 is allowed thirty times as much."""
        return GOLDEN_TOLERANCE * (1 if self.arithmetic == "float32" else 30)

    @property
    def arithmetic(self) -> Arithmetic:
        """Arithmetic of the forward passes, on every device the one that the bundle states."""
        return self.bundle.manifest.arithmetic

    def self_check(self) -> None:
        """Score the golden image; raises `BundleError` when this machine computes otherwise."""
        image, expected = self.golden()
        found = self.score([image])[0].branches
        allowed = self.golden_tolerance
        for name, value in expected.items():
            if not abs(found[name] - value) <= allowed * max(1.0, abs(value)):
                raise BundleError(
                    f"the golden image of {self.bundle.manifest.name} gets {found[name]:.5f} from"
                    f" the {name} branch on {self.device} in {self.arithmetic}, not {value:.5f}"
                )

    def _score_once(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        if not images:
            return []
        with torch.inference_mode():
            read = {name: branch.read(images) for name, branch in self.branches.items()}
        return [
            self._verdict({name: readings[index] for name, readings in read.items()})
            for index in range(len(images))
        ]

    def _apply_applicability(self, image: NDArray[np.uint8], score: Score) -> Score:
        """Judge nothing that the thresholds do not hold for, whatever the score says of it.

        No evidence leaves the probability at the prior, or below where the score already is.
        """
        why = inapplicable_reason(image, self.bundle.manifest.aligned) or score.outside
        if why is None:
            return score
        probability = min(score.probability, score.prior)
        return replace(
            score, label=Label.UNSURE, probability=probability, distance=None, outside=why
        )

    def _require_stable_label(self, image: NDArray[np.uint8], score: Score) -> Score:
        if score.label is not Label.GENERATED:
            return score
        copies = self._score_once(mild_copies(image, min_side=MIN_SIDE))
        if all(copy.label is Label.GENERATED for copy in copies):
            return score
        weakest = min(copies, key=lambda copy: copy.probability)
        return replace(
            score,
            label=Label.UNSURE,
            probability=weakest.probability,
            distance=weakest.distance,
        )

    def _verdict(self, readings: Mapping[str, Reading]) -> Score:
        branches = {name: reading.logit for name, reading in readings.items()}
        manifest = self.bundle.manifest
        for name, value in branches.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"the {name} branch gives {value} on {self.device} in {self.arithmetic}"
                    " (half precision may overflow: float32 does not)"
                )
        logit = manifest.fusion.logit(branches)
        points, policy = manifest.operating_points, manifest.policy
        label, point = assign_label(logit, points, policy)
        probability = manifest.fusion.probability(logit, policy.prior)
        return Score(
            probability=probability,
            distance=accusation_distance(probability, manifest.fusion, points, policy),
            label=label,
            branches=branches,
            decided_by=manifest.fusion.decided_by(branches, generated=label is not Label.REAL),
            operating_point=point.name,
            prior=policy.prior,
            # Each of these is what one branch shows.
            error_map=_first(reading.error_map for reading in readings.values()),
            tiles=tuple(tile for reading in readings.values() for tile in reading.tiles),
            contributions=_first(reading.contributions for reading in readings.values()),
            outside=_first(reading.outside for reading in readings.values()),
        )


def _first(shown: Iterable[_Shown | None]) -> _Shown | None:
    return next((one for one in shown if one is not None), None)


def _check(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageTooSmall(f"the image is {width} x {height} pixels: {MIN_SIDE} a side are needed")
