"""Builds a bundle from trained branches: scoring, calibration, figures, card.

Calibration images are those that no branch trained on, and most of the photographs among them come
from sources that no branch has met. A photograph counts by its worst form (as uploaded, saved once
as the generators' users do, and as the web serves it), so that a stated false-positive rate holds
for all three.
"""

from __future__ import annotations

import json
import subprocess
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from detection.bundle import BundleProvenance
from detection.detector import Detector
from detection.fusion import LabelPolicy, select_operating_point
from training.bundles.cards.branches import bundle_card
from training.bundles.writer import write_bundle
from training.data.manifest import snapshot_digest
from training.evaluation.calibration import (
    Logits,
    class_weights,
    clopper_pearson,
    expected_calibration_error,
    fit_fusion,
    operating_points,
)
from training.evaluation.scoring import (
    CALIBRATION_TIERS,
    auc,
    auc_gain,
    recall_at,
    score_tier,
)
from training.evaluation.variants import ScoredVariants, score_variants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle import Bundle
    from detection.fusion import Fusion, OperatingPoint
    from training.bundles.training_run.run import BundleTrainingRun
    from training.data.folds import Fold

_log = structlog.get_logger(__name__)


def build_bundle(
    training_run: BundleTrainingRun, folder: Path, *, data_licence: str, folds: Sequence[Fold] = ()
) -> Bundle:
    """Train what is missing, calibrate, and write the bundle with its card to `folder`.

    Each of the `folds` is trained, too: they say what the bundle is worth on generators and sources
    that it never saw, and take longer than the bundle itself.
    """
    training, calibration = training_run.divided()
    aligned = training_run.aligned("final", training)
    egre = training_run.lare("final", training)
    networks = {"aligned": aligned, "egre": egre}
    draft = write_bundle(training_run.run_dir / "final" / "draft", training_run, networks)
    detector = Detector(draft, device=training_run.device, generators=training_run.generators)
    forms = score_variants(detector, calibration)
    fusion = fit_fusion(forms.pooled(), training_run.recipe.calibration)
    worst = forms.worst(fusion)
    generated = forms.scored["clean"].logits.generated
    points = operating_points(worst, generated)
    policy = LabelPolicy(steady=training_run.recipe.steady)
    metrics = {
        "calibration": _calibration_figures(forms, fusion, points, policy),
        "unseen": [fold_figures(training_run, fold) for fold in folds],
    }
    families = sorted({entry.family for entry in training if entry.generated})
    provenance = BundleProvenance(
        snapshot_digest=snapshot_digest(training_run.entries),
        code_revision=code_revision(),
        recipe=f"training.recipe.BundleRecipe {training_run.recipe.name}",
        seen_families=tuple(families),
        data_licence=data_licence,
    )
    return write_bundle(
        folder,
        training_run,
        networks,
        fusion=fusion,
        points=points,
        policy=policy,
        metrics=metrics,
        provenance=provenance,
        texts={
            "LICENSE-weights.md": (files("training.bundles") / "weights_licence.md").read_text(
                "utf-8"
            ),
            "card.md": bundle_card(training_run.recipe, metrics, points, policy, provenance),
        },
    )


def _calibration_figures(
    forms: ScoredVariants, fusion: Fusion, points: Sequence[OperatingPoint], policy: LabelPolicy
) -> dict[str, Any]:
    clean = forms.scored["clean"]
    generated = clean.logits.generated
    flag = select_operating_point(points, policy.flag)
    figures: dict[str, Any] = {"flag_point": flag.name, "flag_threshold": flag.threshold}
    for name, part in forms.scored.items():
        fused = part.logits.fused(fusion)
        hits = int((fused[~generated] >= flag.threshold).sum())
        low, high = clopper_pearson(hits, int((~generated).sum()))
        probabilities = np.array([fusion.probability(value, 0.5) for value in fused])
        figures[name] = {
            "auc": _stated(fused, generated),
            "auc_by_branch": {
                branch: _stated(values, generated)
                for branch, values in part.logits.branches.items()
            },
            "fusion_gain": fusion_gain(fused, part.logits),
            "auc_by_set": {
                str(name_): _stated(*_against_reals(fused, generated, part.sets == name_))
                for name_ in sorted(set(part.sets[generated]))
            },
            "recall_at_flag": float((fused[generated] >= flag.threshold).mean()),
            "false_positives_at_flag": {"hits": hits, "low": low, "high": high},
            "false_positives_by_source": {
                str(source): [
                    int((fused[part.sets == source] >= flag.threshold).sum()),
                    int((part.sets == source).sum()),
                ]
                for source in sorted(set(part.sets[~generated]))
            },
            "expected_calibration_error": expected_calibration_error(
                probabilities, generated, class_weights(generated)
            ),
        }
    return figures


def fold_figures(training_run: BundleTrainingRun, fold: Fold) -> dict[str, Any]:
    """Train the fold's branches and state their figures on what the fold left out.

    Generated images are held against photographs alone.

    The fusion is the plain sum of the branch logits, each scaled by the mean and spread of the
    left-out photographs: no label of what the fold leaves out enters it. Kept in the run folder, as
    every stage is.
    """
    file = training_run.run_dir / fold.name / "figures.json"
    if not file.is_file():
        figures = _measure_fold(training_run, fold)
        file.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def _measure_fold(training_run: BundleTrainingRun, fold: Fold) -> dict[str, Any]:
    training, tested = fold.divide(training_run.entries)
    against_photographs = [entry for entry in tested if entry.generated or entry.photograph]
    aligned = training_run.aligned(fold.name, training, steps=training_run.recipe.fold_steps)
    egre = training_run.lare(fold.name, training, steps=training_run.recipe.fold_steps)
    networks = {"aligned": aligned, "egre": egre}
    draft = write_bundle(training_run.run_dir / fold.name / "draft", training_run, networks)
    detector = Detector(draft, device=training_run.device, generators=training_run.generators)
    figures: dict[str, Any] = {
        "families": sorted(fold.families),
        "sources": sorted(fold.sources),
        "tiers": {},
    }
    for tier in CALIBRATION_TIERS:
        scored = score_tier(detector, against_photographs, tier)
        generated = scored.logits.generated
        branches = scored.logits.branches
        reals = {branch: values[~generated] for branch, values in branches.items()}
        fused = np.sum(
            [
                (values - reals[branch].mean()) / reals[branch].std()
                for branch, values in branches.items()
            ],
            axis=0,
        )
        figures["tiers"][tier] = {
            "auc": _stated(fused, generated),
            "auc_by_branch": {name_: _stated(v, generated) for name_, v in branches.items()},
            "fusion_gain": fusion_gain(fused, scored.logits),
            "recall_at_1_percent": _interval(recall_at(fused, generated, 0.01)),
            "recall_at_5_percent": _interval(recall_at(fused, generated, 0.05)),
        }
    _log.info("fold_scored", **figures)
    return figures


def _against_reals(
    fused: NDArray[np.float64], generated: NDArray[np.bool_], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    keep = ~generated | chosen
    return fused[keep], generated[keep]


def fusion_gain(fused: NDArray[np.float64], logits: Logits) -> dict[str, Any]:
    """State what fusion gains in AUC over the best branch of these images, and which that is.

    The interval is a paired bootstrap's: both are taken on the same drawn images.
    """
    areas = {name: auc(values, logits.generated).value for name, values in logits.branches.items()}
    best = max(areas, key=areas.__getitem__)
    gain = auc_gain(fused, logits.branches[best], logits.generated)
    return {"best_branch": best, **_interval(gain)}


def _stated(values: NDArray[np.float64], generated: NDArray[np.bool_]) -> dict[str, float]:
    return _interval(auc(values, generated))


def _interval(figure: Any) -> dict[str, float]:
    return {
        "value": round(figure.value, 4),
        "low": round(figure.low, 4),
        "high": round(figure.high, 4),
        "reals": figure.reals,
        "generated": figure.generated,
    }


def code_revision() -> str:
    """Return the revision of the checkout that trains, or an empty string outside one."""
    command = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()
