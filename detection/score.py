"""Score and label: what the detector returns for one image."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


class Label(StrEnum):
    """The three things a verdict can say."""

    REAL = "real"
    GENERATED = "generated"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The detector's answer for one image.

    `probability` is the calibrated probability that the image is generated when a share `prior` of
    the images is; `branches` maps a branch name to its uncalibrated logit; `decided_by` names the
    branch that moved the fused logit most; `operating_point` names the false-positive rate at which
    the label was taken (for example "fpr=0.01"); `error_map` is the LaRE map, float32 (h, w), mean
    over latent channels, or None when the bundle has no lare branch.

    `unsure` at the point of `generated` means that a mild re-encoding flipped the label, and the
    probability is that of the weakest copy. Where `outside` says why the thresholds do not hold for
    such an image, it is `unsure` whatever the score, and the probability is no more than the prior.
    """

    probability: float
    label: Label
    branches: Mapping[str, float]
    decided_by: str
    operating_point: str
    prior: float
    outside: str | None = None
    error_map: NDArray[np.float32] | None = None
