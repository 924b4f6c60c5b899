"""Score and label: what the detector returns for one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


#: Words for the distance from the point of accusation: of each label, those that hold from a
#: distance on. The label comes first, so that no words contradict it.
DISTANCE_WORDS = (
    ("real", -math.inf, "far below"),
    ("real", -3, "below"),
    ("real", -1, "just below"),
    ("unsure", -math.inf, "not surely beyond"),
    ("generated", -math.inf, "just beyond"),
    ("generated", 1, "beyond"),
    ("generated", 3, "far beyond"),
)
#: What stands there for an image to which the thresholds do not apply.
NOT_JUDGED = "not judged"
# Shares of time are sums of fractions.
_ROUNDING = 1e-9


class Label(StrEnum):
    """The three things a verdict can say."""

    REAL = "real"
    GENERATED = "generated"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLogit:
    """One tile that the aligned branch read, in pixels of the image, and what it said of it."""

    top: int
    left: int
    height: int
    width: int
    logit: float

    def as_dict(self) -> dict[str, Any]:
        """Return `box`, (left, top, width, height), and `logit` to four decimals, for JSON."""
        box = [self.left, self.top, self.width, self.height]
        return {"box": box, "logit": round(self.logit, 4)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a tile from what `as_dict` returned."""
        left, top, width, height = values["box"]
        return cls(top=top, left=left, height=height, width=width, logit=values["logit"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The detector's answer for one image.

    `probability` is the calibrated probability that the image is generated when a share `prior` of
    the images is; `branches` maps a branch name to its uncalibrated logit; `decided_by` names the
    branch that moved the fused logit most; `operating_point` names the false-positive rate at which
    the label was taken (for example "fpr=0.01"); `error_map` is the LaRE map, float32 (h, w), mean
    over latent channels, or None when the bundle has no lare branch; `tiles` are what the aligned
    branch read, their logits' mean being its own, and empty without that branch. `contributions`,
    float32 (h, w), says what the backbone branch makes of each part of the centre square, its mean
    being the branch's logit, or is None without that branch.

    `unsure` at the point of `generated` means that a mild re-encoding flipped the label, and the
    probability is that of the weakest copy. Where `outside` says why the thresholds do not hold for
    such an image, it is `unsure` whatever the score, and the probability is no more than the prior.

    `distance` is the log-odds of the probability less those of the bundle's point of accusation,
    from which on images are `generated`: 0 at the point, positive beyond it. It is None where
    `outside` says why nothing was judged.

    `frame` is the number of the frame that decided: see `decide`.
    """

    probability: float
    label: Label
    branches: Mapping[str, float]
    decided_by: str
    operating_point: str
    prior: float
    outside: str | None = None
    error_map: NDArray[np.float32] | None = None
    frame: int = 0
    distance: float | None = None
    tiles: tuple[TileLogit, ...] = ()
    contributions: NDArray[np.float32] | None = None


def distance_words(label: str, distance: float | None, outside: str | None) -> str | None:
    """Say where an image lies to the point of accusation; None when no distance is known."""
    if outside is not None:
        return NOT_JUDGED
    if distance is None:
        return None
    return next(
        words for of, least, words in reversed(DISTANCE_WORDS) if of == label and distance >= least
    )


def describe_distance(label: str, distance: float | None, outside: str | None) -> str:
    """Say label, words and distance in one short line, for example "real: far below, -4.2"."""
    words = distance_words(label, distance, outside)
    if words is None:
        return label
    return f"{label}: {words}" if distance is None else f"{label}: {words}, {distance:+.1f}"


class Frame(Protocol):
    """A frame as `decide` reads it: its number and its share of the time, 0 to 1."""

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def share(self) -> float: ...  # noqa: D102


def decide(sample: Sequence[Frame], scores: Sequence[Score]) -> Score:
    """Return the score of an image of several frames, given those of its frames.

    It is the highest probability that frames of at least half the time reach, so an accusation
    needs half of what a viewer sees. Frames to which the thresholds do not apply are left out while
    there are others. Frames that are alike make the false-positive rate that of one frame; frames
    that are independent make it lower; whatever they are, it is at most twice that of one frame.
    """
    pairs = list(zip(sample, scores, strict=True))
    fitting = [pair for pair in pairs if pair[1].outside is None] or pairs
    fitting.sort(key=lambda pair: (-pair[1].probability, pair[0].number))
    reached = list(accumulate(frame.share for frame, _ in fitting))
    half = reached[-1] / 2 - _ROUNDING
    frame, score = fitting[next(i for i, share in enumerate(reached) if share >= half)]
    return replace(score, frame=frame.number)
