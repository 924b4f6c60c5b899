"""Cross-fitting of a head: every image is scored by a head that never met its kind.

Each fold leaves out whole autoencoder families and whole sources. A fold's thresholds come from its
training side alone: from images that heads without a further fold left out (nested), so that what
is stated of the fold is what happens on generators and cameras that neither the head nor the
thresholds have met. What is released is fitted on all images, and calibrated on the scores of all
folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from detection.fusion import LabelPolicy, assign_label
from detection.score import Label
from training.evaluation.calibration import (
    Logits,
    class_weights,
    clopper_pearson,
    expected_calibration_error,
    fit_fusion,
    operating_points,
)
from training.evaluation.scoring import RAW, Scored, auc, merge, recall_at
from training.evaluation.variants import ScoredVariants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from detection.fusion import Fusion, OperatingPoint
    from training.bundles.head_branch import HeadBranch
    from training.data.folds import Fold
    from training.data.manifest import Entry
    from training.evaluation.calibration import CalibrationKind
    from training.fit.softmax_head import SoftmaxHead

#: Forms that images are scored in: as uploaded, with codecs harmonised, as the web serves them, and
#: as a thumbnail that was passed on.
SCORED_FORMS = (RAW, "clean", "web", "hard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A fusion and its operating points, and the scored images that they rest on."""

    fusion: Fusion
    points: tuple[OperatingPoint, ...]
    variants: ScoredVariants


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """A fold: what its head says of what it left out, under its own nested calibration."""

    fold: Fold
    calibrated: Calibrated
    tested: ScoredVariants


def cross_fit(
    branch: HeadBranch,
    entries: Sequence[Entry],
    folds: Sequence[Fold],
    calibration: CalibrationKind = "temperature",
) -> list[FoldResult]:
    """Fit and calibrate every fold; of two folds together, one head serves both."""
    sides = [fold.divide(entries) for fold in folds]
    inner: list[list[ScoredVariants]] = [[] for _ in folds]
    for first, second in combinations(range(len(folds)), 2):
        head = branch.head(_common(sides[first][0], sides[second][0]))
        # What one fold tests is on the training side of the other, or of no use to it.
        for one, other in ((first, second), (second, first)):
            inner[one].append(_scored(branch, head, _common(sides[other][1], sides[one][0])))
    results = []
    for fold, (training, tested), parts in zip(folds, sides, inner, strict=True):
        results.append(
            FoldResult(
                fold=fold,
                calibrated=calibrate(join(parts), calibration),
                tested=_scored(branch, branch.head(training), tested),
            )
        )
    return results


def unseen_auc(
    branch: HeadBranch, entries: Sequence[Entry], folds: Sequence[Fold], forms: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """State by form the AUC against photographs of each fold's head on what it left out."""
    return {
        form: [_interval(auc(one.logits, one.generated, groups=one.groups)) for one in found]
        for form, found in unseen_logits(branch, entries, folds, forms).items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenLogits:
    """What a fold's head says of N photographs and generated images that it left out: (N,) each."""

    logits: NDArray[np.float64]
    generated: NDArray[np.bool_]
    groups: NDArray[np.str_]


def unseen_logits(
    branch: HeadBranch, entries: Sequence[Entry], folds: Sequence[Fold], forms: Sequence[str]
) -> dict[str, list[UnseenLogits]]:
    """Fit each fold's head, and score by form what the fold leaves out."""
    found: dict[str, list[UnseenLogits]] = {form: [] for form in forms}
    for fold in folds:
        training, tested = fold.divide(entries)
        tested = [entry for entry in tested if entry.generated or entry.photograph]
        generated = np.array([entry.generated for entry in tested])
        groups = np.array([entry.group for entry in tested])
        head = branch.head(training)
        for form, scored in found.items():
            logits = branch.logits(head, tested, form)
            scored.append(UnseenLogits(logits=logits, generated=generated, groups=groups))
    return found


def calibrate(variants: ScoredVariants, calibration: CalibrationKind = "temperature") -> Calibrated:
    """Fit the fusion, and place thresholds that hold for photographs and for other reals."""
    fusion = fit_fusion(variants.pooled(), calibration)
    worst = variants.worst(fusion)
    entries = variants.entries
    generated = np.array([entry.generated for entry in entries])
    other = np.array([not entry.generated and not entry.photograph for entry in entries])
    points = operating_points(worst[~other], generated[~other], others=worst[other])
    return Calibrated(fusion=fusion, points=points, variants=variants)


def join(parts: Sequence[ScoredVariants]) -> ScoredVariants:
    """Join images that different heads scored in the same forms."""
    return ScoredVariants(
        {form: merge([part.scored[form] for part in parts]) for form in SCORED_FORMS}
    )


def fold_figures(result: FoldResult, policy: LabelPolicy) -> dict[str, Any]:
    """State what a fold's head is worth on what it left out, at its own thresholds."""
    entries = np.array(result.tested.entries, dtype=object)
    generated = np.array([entry.generated for entry in entries])
    photographs = np.array([entry.photograph for entry in entries])
    figures: dict[str, Any] = {
        "name": result.fold.name,
        "families": sorted(result.fold.families),
        "sources": sorted(result.fold.sources),
        "generated": int(generated.sum()),
        "photographs": int(photographs.sum()),
        "other_reals": int((~generated & ~photographs).sum()),
        "forms": {},
    }
    groups = np.array([entry.group for entry in entries])
    against = generated | photographs
    for form in SCORED_FORMS:
        fused = result.tested.scored[form].logits.fused(result.calibrated.fusion)
        accused = _accused(fused, result.calibrated, policy)
        figures["forms"][form] = {
            "auc": _interval(auc(fused[against], generated[against], groups=groups[against])),
            "recall_at_1_percent": _interval(
                recall_at(fused[against], generated[against], 0.01, groups=groups[against])
            ),
            "generated_accused": _share(accused[generated]),
            "photographs_accused": _share(accused[photographs]),
            "other_reals_accused": _share(accused[~generated & ~photographs]),
        }
    return figures


def pooled_figures(results: Sequence[FoldResult], policy: LabelPolicy) -> dict[str, Any]:
    """State what holds over all folds: every real picture is tested once, as unseen."""
    figures: dict[str, Any] = {"forms": {}, "kinds": {}}
    everything = [entry for result in results for entry in result.tested.entries]
    photographs = np.array([entry.photograph for entry in everything])
    generated = np.array([entry.generated for entry in everything])
    other = ~generated & ~photographs
    anywhere = np.zeros(len(everything), dtype=bool)
    for form in SCORED_FORMS:
        accused, stated = [], []
        for result in results:
            fused = result.tested.scored[form].logits.fused(result.calibrated.fusion)
            accused.append(_accused(fused, result.calibrated, policy))
            fusion = result.calibrated.fusion
            stated += [fusion.probability(value, policy.prior) for value in fused]
        flags = np.concatenate(accused)
        anywhere |= flags
        figures["forms"][form] = {
            "photographs_accused": _share(flags[photographs]),
            "other_reals_accused": _share(flags[other]),
            "generated_accused": _share(flags[generated]),
            "expected_calibration_error": round(
                expected_calibration_error(
                    np.array(stated)[~other], generated[~other], class_weights(generated[~other])
                ),
                4,
            ),
        }
    figures["worst_form"] = {
        "photographs_accused": _share(anywhere[photographs]),
        "other_reals_accused": _share(anywhere[other]),
    }
    kinds = np.array([entry.kind for entry in everything])
    figures["kinds"] = {
        str(kind): _share(anywhere[kinds == kind]) for kind in sorted(set(kinds[~generated]))
    }
    return figures


def _common(first: Sequence[Entry], second: Sequence[Entry]) -> list[Entry]:
    kept = {entry.path for entry in second}
    return [entry for entry in first if entry.path in kept]


def _scored(branch: HeadBranch, head: SoftmaxHead, entries: Sequence[Entry]) -> ScoredVariants:
    generated = np.array([entry.generated for entry in entries])
    return ScoredVariants(
        {
            form: Scored(
                tuple(entries),
                Logits({branch.name: branch.logits(head, entries, form)}, generated),
                form,
            )
            for form in SCORED_FORMS
        }
    )


def _accused(
    fused: NDArray[np.float64], calibrated: Calibrated, policy: LabelPolicy
) -> NDArray[np.bool_]:
    labels = [assign_label(value, calibrated.points, policy)[0] for value in fused]
    return np.array([label is Label.GENERATED for label in labels])


def _share(flags: NDArray[np.bool_]) -> dict[str, float]:
    hits, total = int(flags.sum()), len(flags)
    low, high = clopper_pearson(hits, total) if total else (0.0, 1.0)
    return {"hits": hits, "total": total, "low": round(low, 4), "high": round(high, 4)}


def _interval(figure: Any) -> dict[str, float]:
    return {name: round(getattr(figure, name), 4) for name in ("value", "low", "high")}
