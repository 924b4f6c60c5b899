"""The card of a bundle with a head on a pretrained backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.bundles.cards.sections import (
    label_line,
    operating_point_table,
    provenance_lines,
    reach_lines,
    show_interval,
    smoke_lines,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detection.bundle import BundleProvenance
    from detection.fusion import LabelPolicy, OperatingPoint
    from detection.networks.branch_configs import BackboneConfig
    from training.bundles.recipe import BundleRecipe


def backbone_card(
    recipe: BundleRecipe,
    metrics: Mapping[str, Any],
    points: Sequence[OperatingPoint],
    policy: LabelPolicy,
    provenance: BundleProvenance,
) -> str:
    """Write the card of a bundle with a backbone from its figures."""
    assert recipe.backbone is not None  # noqa: S101  # the caller's recipe
    return "\n".join(
        [
            f"# The bundle `{recipe.name}`",
            "",
            *smoke_lines(recipe),
            _method_line(recipe.backbone),
            *_point_lines(points),
            label_line(points, policy),
            *_fold_lines(metrics["unseen"]),
            *_pooled_lines(metrics["pooled"]),
            *_thumbnail_lines(metrics["unseen"], metrics["thumbnail_auc"]),
            *_limit_lines(recipe, provenance, metrics["max_novelty"]),
            *provenance_lines(provenance),
        ]
    )


def _method_line(backbone: BackboneConfig) -> str:
    return (
        f"A detector of generated images that fits a CPU: `{backbone.architecture}`, trained on"
        f" ImageNet and frozen, sees the picture's centre square at {backbone.side} pixels; a"
        " multinomial regression, whose classes are the families of generators and the kinds of"
        " real pictures, reads the means and spreads of its features. Every figure below"
        " was computed by `unlatent bundle` when it wrote this file; intervals are 95 %, by a"
        " bootstrap of whole prompts and scenes or after Clopper and Pearson."
    )


def _point_lines(points: Sequence[OperatingPoint]) -> list[str]:
    return [
        "",
        "## Operating points",
        "",
        "Thresholds rest on real pictures that were scored by a head which met neither their",
        "source nor the generator families of its fold. A picture counts by its worst form: as",
        "uploaded, saved as JPEG 75, as the web serves it (at most 768 pixels, JPEG 60), and as a",
        "thumbnail that was passed on (at most 512 pixels, JPEG 40).",
        "",
        *operating_point_table(points),
        "",
        *(
            f"* {point.name}: {point.others_flagged} of {point.others} real pictures that are no"
            " photographs (drawings, documents, screenshots, games, renders, art) lie above it."
            for point in points
            if point.supported and point.others
        ),
        "",
    ]


def _fold_lines(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Families and sources it never saw",
        "",
        "Each fold is trained without whole autoencoder families and whole sources, and without",
        "the prompts that it is tested on; its thresholds come from its training side alone. AUC",
        "is against photographs.",
        "",
        (
            "| fold | form | AUC | recall at 1 % of these photographs | generated images called"
            " `generated` | photographs | other real pictures |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fold in folds:
        for form, part in fold["forms"].items():
            shares = (
                _share(part[f"{side}_accused"])
                for side in ("generated", "photographs", "other_reals")
            )
            lines.append(
                f"| {fold['name']} | {form} | {show_interval(part['auc'])} |"
                f" {show_interval(part['recall_at_1_percent'])} | {' | '.join(shares)} |"
            )
    lines += [""] + [
        f"* {fold['name']}: without {', '.join(fold['families'])}; {', '.join(fold['sources'])}."
        for fold in folds
    ]
    return lines


def _pooled_lines(pooled: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## All folds together: every real picture once, as unseen",
        "",
        "| form | photographs called `generated` | other real pictures | calibration error |",
        "| --- | --- | --- | --- |",
    ]
    for form, part in pooled["forms"].items():
        lines.append(
            f"| {form} | {_share(part['photographs_accused'])} |"
            f" {_share(part['other_reals_accused'])} | {part['expected_calibration_error']:.3f} |"
        )
    worst = pooled["worst_form"]
    lines.append(
        f"| in any form | {_share(worst['photographs_accused'])} |"
        f" {_share(worst['other_reals_accused'])} | |"
    )
    kinds = (f"{kind} {part['hits']} of {part['total']}" for kind, part in pooled["kinds"].items())
    return [*lines, "", f"Called `generated` in any form, by kind: {', '.join(kinds)}."]


def _thumbnail_lines(
    folds: Sequence[Mapping[str, Any]], thumbnails: Sequence[Mapping[str, float]]
) -> list[str]:
    lines = [
        "",
        "## What content alone tells",
        "",
        "The same regression on thumbnails of 32 x 32 pixels, which show what a picture is of and",
        "no trace of how it was made; AUC against photographs, web form.",
        "",
        "| fold | this bundle | thumbnails |",
        "| --- | --- | --- |",
    ]
    return lines + [
        f"| {fold['name']} | {show_interval(fold['forms']['web']['auc'])} |"
        f" {show_interval(thumbnail)} |"
        for fold, thumbnail in zip(folds, thumbnails, strict=True)
    ]


def _limit_lines(
    recipe: BundleRecipe, provenance: BundleProvenance, max_novelty: float
) -> list[str]:
    return [
        "",
        "## Limits",
        "",
        *reach_lines(recipe, provenance),
        "* It sees the centre square alone: what lies beside it in a long picture decides nothing.",
        "* The generator in the bundle makes pairs for retraining; it takes no part in the score.",
        "* Not measured: GANs, pixel-space diffusion, inpainted parts of photographs.",
        f"* In service a picture whose novelty is above {max_novelty:.2f} (one in a",
        "  thousand of those learnt from; noise) is `unsure`, and so is one that is nearly blank,",
        "  drawn in even colours or tiny. The figures above are by threshold alone.",
    ]


def _share(part: Mapping[str, float]) -> str:
    if not part["total"]:
        return "-"
    value = part["hits"] / part["total"]
    return f"{part['hits']}/{part['total']} = {value:.1%} ({part['low']:.1%} to {part['high']:.1%})"
