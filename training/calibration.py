"""Fusion, calibration and operating points from logits of images that no branch trained on.

Thresholds are cross-fitted: every image they rest on was left out, with its whole source or
generator family, of the training of the networks that scored it. What is stated for an operating
point is therefore what happens on photographs from sources the detector has not met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from detection.errors import UnlatentError
from detection.fusion import Fusion, OperatingPoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

#: How fused logits become probabilities: divided by a temperature, or mapped by breakpoints.
CalibrationKind = Literal["temperature", "isotonic"]

TARGETS = (0.001, 0.005, 0.01, 0.05)
#: An operating point is published when the upper limit of its rate is at most this many targets.
SUPPORT_FACTOR = 2.5
CONFIDENCE = 0.95


class CalibrationError(UnlatentError):
    """There are too few images of a class to calibrate on."""


@dataclass(frozen=True, slots=True)
class Logits:
    """Branch logits of N images: name to float64 (N,), and which images are generated (N,)."""

    branches: Mapping[str, Floats]
    generated: Flags

    def fused(self, fusion: Fusion) -> Floats:
        """Return the fused logits (N,)."""
        weighted = sum(weight * self.branches[name] for name, weight in fusion.weights.items())
        return np.asarray((weighted + fusion.bias) / fusion.temperature)


def clopper_pearson(hits: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact binomial interval of a rate (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, total - hits + 1))
    high = 1.0 if hits == total else float(beta.ppf(1 - tail, hits + 1, total - hits))
    return low, high


def class_weights(generated: Flags) -> Floats:
    """Weight images so that both classes count alike: the fit is made at even odds."""
    fakes = int(generated.sum())
    reals = len(generated) - fakes
    if not fakes or not reals:
        missing = "generated" if not fakes else "real"
        raise CalibrationError(f"no {missing} images to calibrate on: both classes are needed")
    return np.where(generated, 0.5 / fakes, 0.5 / reals) * len(generated)


def fit_fusion(logits: Logits, calibration: CalibrationKind = "temperature") -> Fusion:
    """Fit the logistic fusion of the branch logits, at even odds.

    A branch that would enter with a negative weight (its logit argues backwards on data it was not
    trained on) is left out and keeps the weight 0.
    """
    names = sorted(logits.branches)
    weights = class_weights(logits.generated)
    used = list(names)
    while True:
        columns = np.column_stack([logits.branches[name] for name in used])
        model = LogisticRegression(C=1e3, max_iter=1000)
        model.fit(columns, logits.generated, sample_weight=weights)
        found = dict(zip(used, model.coef_[0].tolist(), strict=True))
        wrong = [name for name in used if found[name] < 0]
        if not wrong or len(used) == 1:
            break
        used = [name for name in used if name not in wrong] or used[:1]
    centres = {name: float(np.average(logits.branches[name], weights=weights)) for name in names}
    fusion = Fusion(
        weights={name: max(0.0, found.get(name, 0.0)) for name in names},
        centres=centres,
        bias=float(model.intercept_[0]),
    )
    fused = logits.fused(fusion)
    if calibration == "isotonic":
        return fusion.model_copy(update={"isotonic": fit_isotonic(fused, logits)})
    return fusion.model_copy(update={"temperature": fit_temperature(fused, logits)})


def fit_isotonic(fused: Floats, logits: Logits) -> tuple[tuple[float, float], ...]:
    """Fit the rising steps from fused logits (N,) to probabilities at even odds.

    Returns (logit, probability) breakpoints (Zadrozny and Elkan, KDD 2002). Nothing is certain on N
    images: probabilities stay 1/(2 N) away from 0 and 1.
    """
    model = IsotonicRegression()
    model.fit(fused, logits.generated, sample_weight=class_weights(logits.generated))
    margin = 0.5 / len(fused)
    probabilities = np.clip(model.y_thresholds_, margin, 1 - margin)
    return tuple(zip(model.X_thresholds_.tolist(), probabilities.tolist(), strict=True))


def fit_temperature(fused: Floats, logits: Logits) -> float:
    """Find the temperature that minimises the log loss of fused logits (N,) at even odds."""
    weights = class_weights(logits.generated)
    signs = np.where(logits.generated, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(weights @ np.logaddexp(0, -signs * fused / np.exp(log_temperature)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def operating_points(
    fused: Floats, generated: Flags, targets: Sequence[float] = TARGETS
) -> tuple[OperatingPoint, ...]:
    """Place a threshold for every target rate, with the interval that the photographs allow.

    The threshold is the smallest at which at most floor(target x reals) photographs are flagged; it
    is tightened, as far as needed, until the upper limit of the rate supports the point.
    """
    reals = np.sort(fused[~generated])[::-1]
    if not len(reals):
        raise CalibrationError("no real images to place a threshold on")
    points = []
    for target in targets:
        allowed = min(int(target * len(reals)), len(reals) - 1)
        while allowed and not _supports(allowed, len(reals), target):
            allowed -= 1
        threshold = float(np.nextafter(reals[allowed], np.inf))
        flagged = int((reals >= threshold).sum())
        low, high = clopper_pearson(flagged, len(reals))
        supported = _supports(flagged, len(reals), target)
        points.append(
            OperatingPoint(
                target=target,
                threshold=threshold,
                measured=flagged / len(reals),
                low=low,
                high=high,
                reals=len(reals),
                recall=float((fused[generated] >= threshold).mean()) if generated.any() else 0.0,
                supported=supported,
                needs_reals=None if supported else reals_needed(target),
            )
        )
    return tuple(points)


def reals_needed(target: float) -> int:
    """Count the photographs that support a point when none of them is flagged."""
    total = 1
    while not _supports(0, total, target):
        total = total + max(1, total // 100)
    return total


def _supports(flagged: int, reals: int, target: float) -> bool:
    return clopper_pearson(flagged, reals)[1] <= SUPPORT_FACTOR * target


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One bar of a reliability diagram: mean stated probability, share found, share of weight."""

    stated: float
    found: float
    mass: float


def reliability(
    probabilities: Floats, generated: Flags, weights: Floats | None = None, bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Compare stated and found shares over equal-width bins of probability, less empty ones.

    (Naeini et al., AAAI 2015; Guo et al., ICML 2017, section 2.)
    """
    weights = np.ones(len(generated)) if weights is None else weights
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    return tuple(
        ReliabilityBin(
            stated=float(np.average(probabilities[inside], weights=weights[inside])),
            found=float(np.average(generated[inside], weights=weights[inside])),
            mass=float(weights[inside].sum() / weights.sum()),
        )
        for inside in (index == one for one in np.unique(index[weights > 0]))
    )


def expected_calibration_error(
    probabilities: Floats, generated: Flags, weights: Floats | None = None, bins: int = 15
) -> float:
    """Return the weighted mean gap between stated and found shares over the bins."""
    found = reliability(probabilities, generated, weights, bins)
    return sum(one.mass * abs(one.stated - one.found) for one in found)
