"""Builds a bundle whose one branch is a head on a frozen pretrained backbone.

The folds say what it is worth on generators and sources that it never saw, and calibrate it; the
released head is fitted on all images. The generator of the run is in the bundle for pairs, and
decides nothing.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from detection.backbone import Backbone
from detection.bundle import BundleProvenance
from detection.errors import SettingsError
from detection.fusion import LabelPolicy, select_operating_point
from training.bundles.build import code_revision
from training.bundles.cards.backbone import backbone_card
from training.bundles.cross_fit import (
    calibrate,
    cross_fit,
    fold_figures,
    join,
    pooled_figures,
    unseen_auc,
)
from training.bundles.form_cache import FormCache
from training.bundles.head_branch import HeadBranch, feature_reader, thumbnail_reader
from training.bundles.writer import write_bundle
from training.data.manifest import snapshot_digest
from training.evaluation.mistake_sheet import draw_mistakes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from detection.bundle import Bundle
    from training.bundles.cross_fit import FoldResult
    from training.bundles.training_run.run import BundleTrainingRun
    from training.data.folds import Fold
    from training.data.manifest import Entry


def build_backbone_bundle(
    training_run: BundleTrainingRun, folder: Path, *, data_licence: str, folds: Sequence[Fold]
) -> Bundle:
    """Compute features, fit the folds' heads and the released one, calibrate, and write the bundle.

    Raises `SettingsError` for fewer than three folds: thresholds of a fold rest on the others.
    """
    recipe = training_run.recipe
    if len(folds) < 3:
        raise SettingsError(
            f"{len(folds)} folds can be made of these images, and three are needed: thresholds rest"
            " on images that a head without their family and source has scored"
        )
    training_run.generator()
    head, backbone = feature_head(training_run)
    policy = LabelPolicy(steady=recipe.steady)
    entries, calibration = training_run.entries, recipe.calibration
    results = cross_fit(head, entries, folds, calibration)
    for result in results:
        _draw_mistakes(training_run.run_dir / "mistakes", result, policy)
    released = calibrate(join([result.tested for result in results]), calibration)
    metrics: dict[str, Any] = {
        "unseen": [fold_figures(result, policy) for result in results],
        "pooled": pooled_figures(results, policy),
        "thumbnail_auc": _thumbnail_auc(training_run, folds),
    }
    released_backbone = with_head(head, backbone, entries)
    metrics["max_novelty"] = released_backbone.config.max_novelty
    provenance = _provenance(training_run, data_licence)
    return write_bundle(
        folder,
        training_run,
        {"backbone": released_backbone},
        fusion=released.fusion,
        points=released.points,
        policy=policy,
        metrics=metrics,
        provenance=provenance,
        texts={
            "LICENSE-weights.md": (files("training.bundles") / "weights_licence.md").read_text(
                "utf-8"
            ),
            "card.md": backbone_card(recipe, metrics, released.points, policy, provenance),
        },
    )


def feature_head(training_run: BundleTrainingRun) -> tuple[HeadBranch, Backbone]:
    """Return the head on features that the run keeps, and the backbone that computes them."""
    recipe, backbone = training_run.recipe, training_run.backbone()
    rows = FormCache(
        training_run.run_dir / "forms" / "backbone",
        feature_reader(backbone, training_run.device),
        recipe.augmentation,
    )
    return HeadBranch("backbone", rows, recipe.head), backbone


def with_head(head: HeadBranch, backbone: Backbone, entries: Sequence[Entry]) -> Backbone:
    """Give the backbone a head that learns from `entries`, and what it takes to know their like."""
    fitted, known = head.head(entries), head.familiarity(entries)
    released = Backbone(
        replace(
            backbone.config,
            real=fitted.real,
            generated=fitted.generated,
            max_novelty=known.max_novelty,
        )
    )
    learnt = {**fitted.state(), "centre": known.centre, "spread": known.spread}
    released.load_state_dict({**backbone.state_dict(), **learnt})
    return released


def _provenance(training_run: BundleTrainingRun, data_licence: str) -> BundleProvenance:
    entries = training_run.entries
    return BundleProvenance(
        snapshot_digest=snapshot_digest(entries),
        code_revision=code_revision(),
        recipe=f"training.recipe.BundleRecipe {training_run.recipe.name}",
        seen_families=tuple(sorted({one.family for one in entries if one.generated})),
        data_licence=data_licence,
    )


def _draw_mistakes(folder: Path, result: FoldResult, policy: LabelPolicy) -> None:
    """Draw a fold's worst mistakes as the web serves the images, at the fold's own threshold."""
    calibrated, name = result.calibrated, result.fold.name
    fused = result.tested.scored["web"].logits.fused(calibrated.fusion)
    threshold = select_operating_point(calibrated.points, policy.flag).threshold
    title = f"Fold {name}: log-odds beyond the point of accusation"
    draw_mistakes(folder / f"{name}.png", result.tested.entries, fused - threshold, title=title)


def _thumbnail_auc(
    training_run: BundleTrainingRun, folds: Sequence[Fold]
) -> list[dict[str, float]]:
    """State how far content alone tells the folds' classes apart, in the web form."""
    recipe = training_run.recipe
    folder = training_run.run_dir / "forms" / "thumbnail"
    rows = FormCache(folder, thumbnail_reader, recipe.augmentation)
    probe = HeadBranch("thumbnail", rows, replace(recipe.head, augmented=0))
    return unseen_auc(probe, training_run.entries, folds, ["web"])["web"]
