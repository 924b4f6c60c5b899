"""From branch logits to a calibrated probability and a label.

The fused logit is logistic in the branch logits and divided by a temperature, or mapped by isotonic
breakpoints; all are fitted on images no branch trained on. A probability is meaningless without the
share of generated images it assumes, so the fit is made at even odds and shifted to a stated prior
by Bayes' rule. Labels come from thresholds at stated false-positive rates, not from the
probability.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from detection.errors import SettingsError
from detection.score import Label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# A logit above 36 rounds to the probability 1, whose odds are no number.
_NEAREST = 1e-12


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fusion(_Record):
    """Weights on the branch logits; `centres` are their means over the calibration images.

    `isotonic` holds (fused logit, probability at even odds) breakpoints, rising in the first and
    never falling in the second; empty where the temperature calibrates.
    """

    weights: dict[str, float]
    centres: dict[str, float]
    bias: float
    temperature: Annotated[float, Field(gt=0)] = 1.0
    isotonic: tuple[tuple[float, Annotated[float, Field(gt=0, lt=1)]], ...] = ()

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for (logit, probability), (next_logit, next_probability) in pairwise(self.isotonic):
            if next_logit <= logit or next_probability < probability:
                raise ValueError("isotonic breakpoints must rise")
        return self

    def logit(self, branches: Mapping[str, float]) -> float:
        """Fuse branch logits to the one logit that thresholds are placed on."""
        weighted = sum(weight * branches[name] for name, weight in self.weights.items())
        return (weighted + self.bias) / self.temperature

    def probability(self, logit: float, prior: float) -> float:
        """Calibrate a fused logit: the probability when a share `prior` is generated.

        Between isotonic breakpoints it is interpolated, beyond them it is constant.
        """
        if not self.isotonic:
            return at_prior(logit, prior)
        logits, probabilities = zip(*self.isotonic, strict=True)
        even = float(np.interp(logit, logits, probabilities))
        return convert_prior(even, assumed=0.5, wanted=prior)

    def decided_by(self, branches: Mapping[str, float], *, generated: bool) -> str:
        """Name the branch that pulled hardest towards the side on which the image landed."""
        sign = 1 if generated else -1

        def pull(name: str) -> float:
            return sign * self.weights[name] * (branches[name] - self.centres[name])

        return max(self.weights, key=pull)


class OperatingPoint(_Record):
    """A threshold on the fused logit at a target false-positive rate, and what supports it.

    `low` and `high` are the Clopper-Pearson 95 % interval of the rate measured on `reals`
    photographs; a point whose `high` exceeds 2.5 times its target is unsupported and never used:
    `needs_reals` says how many photographs would support it. `others_flagged` of the `others`, real
    pictures that are no photographs, lie above the threshold; None where there were none to look
    at.
    """

    target: Annotated[float, Field(gt=0, lt=1)]
    threshold: float
    measured: float
    low: float
    high: float
    reals: int
    recall: float
    supported: bool
    needs_reals: int | None = None
    others_flagged: int | None = None
    others: int = 0

    @property
    def name(self) -> str:
        """The name of the point in verdicts, for example "fpr=0.01"."""
        return f"fpr={self.target:g}"


class LabelPolicy(_Record):
    """Labels: generated from the `flag` rate on, unsure from the `doubt` rate on, else real.

    With `steady`, what is `generated` must also be so as a JPEG of quality 90 and at 95 % of its
    size, else it is `unsure`; it costs two more scores for each image about to be flagged.
    """

    flag: float = 0.01
    doubt: float = 0.05
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.5
    steady: bool = False


def at_prior(logit: float, prior: float) -> float:
    """Turn a logit at even odds into a probability when a share `prior` is generated (Bayes)."""
    shifted = logit + math.log(prior / (1 - prior))
    if shifted >= 0:
        return 1 / (1 + math.exp(-shifted))
    return math.exp(shifted) / (1 + math.exp(shifted))


def log_odds(probability: float) -> float:
    """Return the natural logarithm of the odds, finite also where a probability was rounded."""
    inside = min(max(probability, _NEAREST), 1 - _NEAREST)
    return math.log(inside / (1 - inside))


def accusation_distance(
    probability: float, fusion: Fusion, points: Sequence[OperatingPoint], policy: LabelPolicy
) -> float:
    """Return how far, in log-odds, a probability at the policy's prior lies beyond accusation.

    The point of accusation is the threshold from which on images are `generated`: 0 is at it.
    """
    threshold = select_operating_point(points, policy.flag).threshold
    return log_odds(probability) - log_odds(fusion.probability(threshold, policy.prior))


def convert_prior(probability: float, *, assumed: float, wanted: float) -> float:
    """Convert a probability stated for one share of generated images to another share."""
    generated = probability * wanted / assumed
    real = (1 - probability) * (1 - wanted) / (1 - assumed)
    return generated / (generated + real)


def assign_label(
    logit: float, points: Sequence[OperatingPoint], policy: LabelPolicy
) -> tuple[Label, OperatingPoint]:
    """Label a fused logit; returns the operating point that the label rests on."""
    flag = select_operating_point(points, policy.flag)
    if logit >= flag.threshold:
        return Label.GENERATED, flag
    doubt = select_operating_point(points, policy.doubt)
    if logit >= doubt.threshold:
        return Label.UNSURE, doubt
    return Label.REAL, doubt


def select_operating_point(points: Sequence[OperatingPoint], target: float) -> OperatingPoint:
    """Return the strictest supported point that is not stricter than `target`, else the loosest.

    A rate that the photographs at hand cannot support is never used: the next looser supported
    point takes its place. Raises `SettingsError` when no point is supported.
    """
    supported = sorted((p for p in points if p.supported), key=lambda point: point.target)
    if not supported:
        raise SettingsError("no operating point is supported by enough photographs")
    for point in supported:
        if point.target >= target:
            return point
    return supported[-1]
