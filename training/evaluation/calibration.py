"""Fusion, calibration and operating points from logits of images that no branch trained on.

Thresholds are cross-fitted: every image they rest on was left out, with its whole source or
generator family, of the training of the networks that scored it. What is stated for an operating
point is therefore what happens on photographs from sources the detector has not met.

Images may have been sampled unequally: `weights` float64 (N,) say how many each stands for, and
without them each stands for itself. Weighing may tighten a threshold or widen an interval; it never
makes either laxer than the plain count does. Nor do photographs that were drawn from what a
champion let through: those that it accused are missing among them.
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
#: Real pictures that are no photographs may be flagged at so many times the target.
OTHERS_FACTOR = 2
CONFIDENCE = 0.95


class CalibrationError(UnlatentError):
    """There are too few images of a class to calibrate on."""


@dataclass(frozen=True, slots=True)
class Logits:
    """Branch logits of N images: name to float64 (N,), and which images are generated (N,).

    Where each image is there in several `forms`, N counts them all, but they are no more evidence
    than the images are.
    """

    branches: Mapping[str, Floats]
    generated: Flags
    forms: int = 1

    def fused(self, fusion: Fusion) -> Floats:
        """Return the fused logits (N,)."""
        weighted = sum(weight * self.branches[name] for name, weight in fusion.weights.items())
        return np.asarray((weighted + fusion.bias) / fusion.temperature)


def clopper_pearson(
    hits: float, total: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the exact binomial interval of a rate (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(beta.ppf(tail, hits, total - hits + 1))
    high = 1.0 if hits >= total else float(beta.ppf(1 - tail, hits + 1, total - hits))
    return low, high


def effective_count(weights: Floats) -> float:
    """Return how many equally weighted images weights (N,) are worth.

    (sum of w)^2 / (sum of w^2) (Kish, Survey Sampling, 1965).
    """
    return float(weights.sum() ** 2 / (weights**2).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedRate:
    """A share of weighted images, with its 95 % interval."""

    measured: float
    low: float
    high: float


def flagged_rate(flagged: Flags, weights: Floats) -> FlaggedRate:
    """Return the weighted share of flagged images, from masks and weights (N,).

    Clopper and Pearson's interval at the effective number of images, as Korn and Graubard (Survey
    Methodology 24, 1998) adapt it: p (1 - p) over the variance of the weighted share p. Kish's
    number bounds it, for where nothing is flagged that variance is none. The interval is widened
    to hold the one of the plain count.
    """
    hits, total = int(flagged.sum()), len(flagged)
    plain_low, plain_high = clopper_pearson(hits, total)
    worth = effective_count(weights)
    inside, outside = weights[flagged], weights[~flagged]
    heavy, light = inside.sum(), outside.sum()
    if heavy and light:
        spread = (inside**2).sum() * light / heavy + (outside**2).sum() * heavy / light
        worth = min(worth, float(weights.sum() ** 2 / spread))
    low, high = clopper_pearson(float(heavy * worth / weights.sum()), worth)
    return FlaggedRate(
        measured=float(heavy / weights.sum()), low=min(low, plain_low), high=max(high, plain_high)
    )


def class_weights(generated: Flags, weights: Floats | None = None) -> Floats:
    """Weight images so that both classes count alike: the fit is made at even odds."""
    weights = np.ones(len(generated)) if weights is None else weights
    fakes, reals = weights[generated].sum(), weights[~generated].sum()
    if not fakes or not reals:
        missing = "generated" if not fakes else "real"
        raise CalibrationError(f"no {missing} images to calibrate on: both classes are needed")
    even: Floats = np.where(generated, 0.5 / fakes, 0.5 / reals) * weights * len(generated)
    return even


def smoothed_targets(logits: Logits, weights: Floats | None = None) -> Floats:
    """Return the probabilities (N,) that a logistic fit aims at, which are never 0 and 1.

    A class worth n images is aimed at with (n + 1) / (n + 2) instead of certainty (Platt, Advances
    in Large Margin Classifiers, 1999): where the classes lie apart, a fit to certainty has no end,
    and 20 images would let a verdict claim that it cannot be wrong.
    """
    generated = logits.generated
    weights = np.ones(len(generated)) if weights is None else weights
    fakes, reals = (
        effective_count(weights[of_class]) / logits.forms for of_class in (generated, ~generated)
    )
    return np.where(generated, (fakes + 1) / (fakes + 2), 1 / (reals + 2))


def fit_fusion(
    logits: Logits,
    calibration: CalibrationKind = "temperature",
    weights: Floats | None = None,
) -> Fusion:
    """Fit the logistic fusion of the branch logits, at even odds.

    A branch that would enter with a negative weight (its logit argues backwards on data it was not
    trained on) is left out and keeps the weight 0. The fit is to `smoothed_targets`.
    """
    names = sorted(logits.branches)
    even = class_weights(logits.generated, weights)
    targets = smoothed_targets(logits, weights)
    used = list(names)
    while True:
        columns = np.column_stack([logits.branches[name] for name in used])
        model = LogisticRegression(C=1e3, max_iter=1000)
        # A soft target is the same image under both labels, weighed by how much it is of each.
        model.fit(
            np.concatenate([columns, columns]),
            np.repeat([True, False], len(columns)),
            sample_weight=np.concatenate([even * targets, even * (1 - targets)]),
        )
        found = dict(zip(used, model.coef_[0].tolist(), strict=True))
        wrong = [name for name in used if found[name] < 0]
        if not wrong or len(used) == 1:
            break
        used = [name for name in used if name not in wrong] or used[:1]
    centres = {name: float(np.average(logits.branches[name], weights=even)) for name in names}
    fusion = Fusion(
        weights={name: max(0.0, found.get(name, 0.0)) for name in names},
        centres=centres,
        bias=float(model.intercept_[0]),
    )
    fused = logits.fused(fusion)
    if calibration == "isotonic":
        return fusion.model_copy(update={"isotonic": fit_isotonic(fused, logits, weights)})
    return fusion.model_copy(update={"temperature": fit_temperature(fused, logits, weights)})


def fit_isotonic(
    fused: Floats, logits: Logits, weights: Floats | None = None
) -> tuple[tuple[float, float], ...]:
    """Fit the rising steps from fused logits (N,) to probabilities at even odds.

    Returns (logit, probability) breakpoints (Zadrozny and Elkan, KDD 2002). Nothing is certain on
    images that are worth N: probabilities stay 1/(2 N) away from 0 and 1.
    """
    model = IsotonicRegression()
    model.fit(fused, logits.generated, sample_weight=class_weights(logits.generated, weights))
    worth = len(fused) if weights is None else effective_count(weights)
    margin = 0.5 / (worth / logits.forms)
    probabilities = np.clip(model.y_thresholds_, margin, 1 - margin)
    return tuple(zip(model.X_thresholds_.tolist(), probabilities.tolist(), strict=True))


def fit_temperature(fused: Floats, logits: Logits, weights: Floats | None = None) -> float:
    """Find the temperature that minimises the log loss of fused logits (N,) at even odds.

    The loss is to `smoothed_targets`.
    """
    even = class_weights(logits.generated, weights)
    targets = smoothed_targets(logits, weights)

    def loss(log_temperature: float) -> float:
        scaled = fused / np.exp(log_temperature)
        return float(even @ (np.logaddexp(0, scaled) - targets * scaled))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def operating_points(
    fused: Floats,
    generated: Flags,
    weights: Floats | None = None,
    targets: Sequence[float] = TARGETS,
    *,
    audited: Flags | None = None,
    others: Floats | None = None,
) -> tuple[OperatingPoint, ...]:
    """Place a threshold for every target rate, with the interval that the photographs allow.

    The threshold is the smallest at which at most floor(target x reals) photographs, and at most
    the target's share of their weight, are flagged; it is tightened, as far as needed, until the
    upper limit of the rate supports the point. It is never below 0, even odds: where the classes
    lie far apart, the rate alone would put it beside the photographs and accuse what is like them.

    `audited` (N,) marks photographs drawn from what a champion let through. A point is to hold for
    all photographs and for the others alone; without others none is supported.

    `others` (M,) are fused logits of real pictures that are no photographs: drawings, documents,
    screenshots. No point flags more than twice its target's share of them; they are few, and a
    photographer is not who they protect, so that they only raise thresholds.
    """
    weights = np.ones(len(generated)) if weights is None else weights
    order = np.argsort(fused[~generated])[::-1]
    if not len(order):
        raise CalibrationError("no real images to place a threshold on")
    whole = np.ones(len(order), dtype=bool)
    photographs = _Photographs(
        fused=fused[~generated][order],
        weights=weights[~generated][order],
        whole=whole,
        fair=whole if audited is None else ~audited[~generated][order],
    )
    points = []
    for target in targets:
        threshold = photographs.threshold(target)
        if others is not None and len(others):
            threshold = max(threshold, _above_share(others, OTHERS_FACTOR * target))
        rates = photographs.rates(photographs.fused >= threshold)
        supported = _supports(rates, target)
        points.append(
            OperatingPoint(
                target=target,
                threshold=threshold,
                measured=rates[0].measured,
                low=min(rate.low for rate in rates),
                high=max(rate.high for rate in rates),
                reals=len(order),
                others_flagged=None if others is None else int((others >= threshold).sum()),
                others=0 if others is None else len(others),
                recall=_recall(fused[generated], weights[generated], threshold),
                supported=supported,
                needs_reals=None if supported else reals_needed(target),
            )
        )
    return tuple(points)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Photographs:
    """Photographs by falling logit (N,), and which of them rates are to hold for."""

    fused: Floats
    weights: Floats
    whole: Flags
    fair: Flags

    def rates(self, flagged: Flags) -> list[FlaggedRate]:
        """State each group's rate when some (N,) are flagged; of no image, nothing is known."""
        return [
            flagged_rate(flagged[group], self.weights[group])
            if group.any()
            else FlaggedRate(measured=0.0, low=0.0, high=1.0)
            for group in (self.whole, self.fair)
        ]

    def threshold(self, target: float) -> float:
        """Find the least threshold, not below even odds, that the target allows and supports."""
        places = np.arange(len(self.fused))
        allowed = min(int(target * len(places)), len(places) - 1)
        while allowed and not _supports(self.rates(places < allowed), target):
            allowed -= 1
        return max(0.0, float(np.nextafter(self.fused[allowed], np.inf)))


def _recall(fakes: Floats, weights: Floats, threshold: float) -> float:
    """Return the share of the weight of generated images (N,) at a threshold and above."""
    return float(weights[fakes >= threshold].sum() / weights.sum()) if len(fakes) else 0.0


def _above_share(values: Floats, share: float) -> float:
    """Return the least threshold that at most a share of values (M,) reaches."""
    falling = np.sort(values)[::-1]
    return float(np.nextafter(falling[min(int(share * len(values)), len(values) - 1)], np.inf))


def reals_needed(target: float) -> int:
    """Count the photographs of equal weight that support a point when none of them is flagged."""
    total = 1
    while clopper_pearson(0, total)[1] > SUPPORT_FACTOR * target:
        total = total + max(1, total // 100)
    return total


def _supports(rates: Sequence[FlaggedRate], target: float) -> bool:
    return all(rate.measured <= target and rate.high <= SUPPORT_FACTOR * target for rate in rates)


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
