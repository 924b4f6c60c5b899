"""The promotion gate: whether a challenger may take the champion's place, and why not.

Both models score the same images under the same tiers, so that every comparison is paired: a
bootstrap draws images, and both models meet the same draw. What is required:

1. at the champion's false-positive rate the challenger's recall is higher beyond noise;
2. no tier, and no source with at least 200 images, is worse by more than two points beyond the
   interval;
3. no pinned report that the champion keeps closed is reopened;
4. the calibration error is no worse beyond noise.

Thresholds found here compare models and are never served.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from detection.score import Label
from training.evaluation.calibration import expected_calibration_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]
    Rows = NDArray[np.int_]

CLEAN = "clean"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """What a challenger is held to; shares, not percentages."""

    min_class_images: int = 50
    min_source_images: int = 200
    allowed_loss: float = 0.02
    allowed_calibration_loss: float = 0.01
    bootstraps: int = 1000
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPredictions:
    """What one model says of N images: fused logits, probabilities, and its served threshold."""

    logits: Floats
    probabilities: Floats
    threshold: float

    @property
    def flagged(self) -> Flags:
        """Which images are called generated."""
        found: Flags = self.logits >= self.threshold
        return found

    def of(self, rows: Rows) -> ModelPredictions:
        """Return what it says of the images at these indices."""
        return ModelPredictions(
            logits=self.logits[rows],
            probabilities=self.probabilities[rows],
            threshold=self.threshold,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedPredictions:
    """N images of one tier as both models judge them; `sources` and `generated` are (N,)."""

    sources: NDArray[np.str_]
    generated: Flags
    champion: ModelPredictions
    challenger: ModelPredictions

    def of(self, rows: Rows) -> PairedPredictions:
        """Return the images at these indices."""
        return PairedPredictions(
            sources=self.sources[rows],
            generated=self.generated[rows],
            champion=self.champion.of(rows),
            challenger=self.challenger.of(rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedReport:
    """A closed report: what the image is, and what each model calls it now."""

    key: str
    truth: Label
    champion: Label
    challenger: Label

    @property
    def reopened(self) -> bool:
        """Whether the challenger makes the mistake again that the champion no longer makes."""
        wrong = Label.GENERATED if self.truth is Label.REAL else Label.REAL
        return self.challenger is wrong and self.champion is not wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """A figure of the champion and of the challenger, and the interval of the difference."""

    champion: float
    challenger: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """Whether the challenger passed; `reasons` says in words what kept it out, or what it won."""

    passed: bool
    reasons: tuple[str, ...]
    false_positive_rate: float
    figures: dict[str, MetricChange]
    reopened: tuple[str, ...]

    @classmethod
    def without_images(cls, *reasons: str) -> GateDecision:
        """Refuse, since nothing could be compared."""
        return cls(
            passed=False,
            reasons=reasons or ("the evaluation side holds no image",),
            false_positive_rate=float("nan"),
            figures={},
            reopened=(),
        )

    def to_json(self) -> str:
        """Return the decision as JSON."""
        return json.dumps(asdict(self), indent=1)


def decide(
    tiers: Mapping[str, PairedPredictions],
    pinned: Sequence[PinnedReport],
    *,
    limits: GateLimits | None = None,
    seed: int = 0,
) -> GateDecision:
    """Hold the challenger against the champion; the tier "clean" is the one that must improve."""
    limits = limits or GateLimits()
    clean = tiers[CLEAN]
    missing = list(_missing(clean, limits))
    if missing:
        return GateDecision.without_images(*missing)
    rate = float(clean.champion.flagged[~clean.generated].mean())
    figures = _figures(tiers, limits, seed)
    reopened = tuple(report.key for report in pinned if report.reopened)
    refusals = [*_refusals(figures, limits)]
    if reopened:
        refusals.append(
            f"{len(reopened)} of {len(pinned)} pinned reports would be reopened:"
            f" {', '.join(reopened[:5])}{', …' if len(reopened) > 5 else ''}"
        )
    won = (
        f"recall at a false-positive rate of {rate:.2%} rises from"
        f" {figures['recall'].champion:.1%} to {figures['recall'].challenger:.1%}"
        f" ({figures['recall'].low:+.1%} to {figures['recall'].high:+.1%})"
    )
    return GateDecision(
        passed=not refusals,
        reasons=tuple(refusals) or (won,),
        false_positive_rate=rate,
        figures=figures,
        reopened=reopened,
    )


def _missing(clean: PairedPredictions, limits: GateLimits) -> Iterator[str]:
    for name, count in (
        ("real", int((~clean.generated).sum())),
        ("generated", int(clean.generated.sum())),
    ):
        if count < limits.min_class_images:
            yield (
                f"the evaluation holds {count} {name} images: at least"
                f" {limits.min_class_images} are needed to tell the models apart"
            )


def _figures(
    tiers: Mapping[str, PairedPredictions], limits: GateLimits, seed: int
) -> dict[str, MetricChange]:
    clean = tiers[CLEAN]
    figures = {
        "recall": _change(clean, _matched_recall, limits, seed),
        "calibration": _change(clean, _calibration, limits, seed),
    }
    for tier, paired in tiers.items():
        figures[f"tier {tier}"] = _change(paired, _balanced, limits, seed)
    for source in np.unique(clean.sources).tolist():
        rows = np.flatnonzero(clean.sources == source)
        if len(rows) >= limits.min_source_images:
            figures[f"source {source}"] = _change(clean.of(rows), _right, limits, seed)
    return figures


def _refusals(figures: Mapping[str, MetricChange], limits: GateLimits) -> Iterator[str]:
    recall = figures["recall"]
    if recall.low <= 0:
        yield (
            "recall at the champion's false-positive rate is not better beyond noise:"
            f" {recall.champion:.1%} before, {recall.challenger:.1%} now"
            f" ({recall.low:+.1%} to {recall.high:+.1%})"
        )
    calibration = figures["calibration"]
    if calibration.low > limits.allowed_calibration_loss:
        yield (
            f"calibration is worse: an error of {calibration.challenger:.3f} after"
            f" {calibration.champion:.3f}"
        )
    for name, change in figures.items():
        if name.startswith(("tier ", "source ")) and change.high < -limits.allowed_loss:
            yield (
                f"{name} is worse: {change.champion:.1%} right before, {change.challenger:.1%} now"
                f" ({change.low:+.1%} to {change.high:+.1%}, {change.images} images)"
            )


def _change(
    paired: PairedPredictions,
    figure: Callable[[PairedPredictions, Rows], tuple[float, float]],
    limits: GateLimits,
    seed: int,
) -> MetricChange:
    """Compute a figure of both models and bootstrap its difference, stratified by class."""
    reals, fakes = np.flatnonzero(~paired.generated), np.flatnonzero(paired.generated)
    champion, challenger = figure(paired, np.r_[reals, fakes])
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(limits.bootstraps):
        rows = np.r_[rng.choice(reals, len(reals)), rng.choice(fakes, len(fakes))]
        before, now = figure(paired, rows)
        differences.append(now - before)
    tail = (1 - limits.confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return MetricChange(
        champion=champion,
        challenger=challenger,
        low=float(low),
        high=float(high),
        images=len(paired.generated),
    )


def _matched_recall(paired: PairedPredictions, rows: Rows) -> tuple[float, float]:
    """Recall of the champion as served, and of the challenger at the same false-positive rate."""
    generated = paired.generated[rows]
    flagged = paired.champion.flagged[rows]
    reals = np.sort(paired.challenger.logits[rows][~generated])
    allowed = int(flagged[~generated].sum())
    threshold = reals[len(reals) - allowed - 1] if allowed < len(reals) else -np.inf
    found = paired.challenger.logits[rows][generated] > threshold
    return float(flagged[generated].mean()), float(found.mean())


def _balanced(paired: PairedPredictions, rows: Rows) -> tuple[float, float]:
    """Balanced accuracy of both at their served thresholds."""
    generated = paired.generated[rows]
    figures = []
    for judgement in (paired.champion, paired.challenger):
        right = judgement.flagged[rows] == generated
        sides = [right[side].mean() for side in (generated, ~generated) if side.any()]
        figures.append(float(np.mean(sides)))
    return figures[0], figures[1]


def _right(paired: PairedPredictions, rows: Rows) -> tuple[float, float]:
    """Share of images that both call what they are, at their served thresholds."""
    generated = paired.generated[rows]
    return (
        float((paired.champion.flagged[rows] == generated).mean()),
        float((paired.challenger.flagged[rows] == generated).mean()),
    )


def _calibration(paired: PairedPredictions, rows: Rows) -> tuple[float, float]:
    """Expected calibration error of both, classes weighted alike."""
    generated = paired.generated[rows]
    weights = np.where(generated, 0.5 / generated.sum(), 0.5 / (~generated).sum())
    return (
        expected_calibration_error(paired.champion.probabilities[rows], generated, weights),
        expected_calibration_error(paired.challenger.probabilities[rows], generated, weights),
    )
