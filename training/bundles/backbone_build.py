"""Builds a bundle whose one branch is a head on a frozen pretrained backbone.

The folds say what it is worth on generators and sources that it never saw, and calibrate it; the
released head is fitted on all images. The generator of the run is in the bundle for pairs and error
maps, and decides nothing.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from detection.bundle import BundleProvenance
from detection.errors import SettingsError
from detection.fusion import LabelPolicy
from training.bundles.backbone_features import FeatureCache
from training.bundles.build import code_revision
from training.bundles.cards import backbone_card
from training.bundles.cross_fit import CrossFit, fold_figures, join, pooled_figures
from training.bundles.writer import write_bundle
from training.data.manifest import snapshot_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from detection.bundle import Bundle
    from training.bundles.recipe import BundleTrainingRun
    from training.data.folds import Fold


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
    backbone = training_run.backbone()
    cache = FeatureCache(
        training_run.run_dir / "features", backbone, recipe.augmentation, device=training_run.device
    )
    fit = CrossFit(
        cache, training_run.entries, training_run.own_images(), recipe.head, recipe.calibration
    )
    policy = LabelPolicy(steady=recipe.steady)
    results = fit.folds(folds)
    released = fit.calibrate(join([result.tested for result in results]))
    metrics = {
        "unseen": [fold_figures(result, policy) for result in results],
        "pooled": pooled_figures(results, policy),
    }
    backbone.load_state_dict({**backbone.state_dict(), **fit.head(fit.entries).state()})
    provenance = BundleProvenance(
        snapshot_digest=snapshot_digest(training_run.entries),
        code_revision=code_revision(),
        recipe=f"training.recipe.BundleRecipe {recipe.name}",
        seen_families=tuple(sorted({one.family for one in fit.entries if one.generated})),
        data_licence=data_licence,
    )
    return write_bundle(
        folder,
        training_run,
        {"backbone": backbone},
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
