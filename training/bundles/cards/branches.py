"""The card of a bundle with the aligned and the lare branch."""

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
from training.evaluation.scoring import CALIBRATION_TIERS, RAW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detection.bundle import BundleProvenance
    from detection.fusion import LabelPolicy, OperatingPoint
    from training.bundles.recipe import BundleRecipe


def bundle_card(
    recipe: BundleRecipe,
    metrics: Mapping[str, Any],
    points: Sequence[OperatingPoint],
    policy: LabelPolicy,
    provenance: BundleProvenance,
) -> str:
    """Write the bundle's card from its figures."""
    return "\n".join(
        [
            f"# The bundle `{recipe.name}`",
            "",
            *smoke_lines(recipe),
            *_method_lines(recipe),
            *_point_lines(points),
            label_line(points, policy),
            *_seen_lines(metrics["calibration"]),
            *_unseen_lines(recipe, metrics["unseen"]),
            *_limit_lines(recipe, provenance),
            *provenance_lines(provenance),
        ]
    )


def _method_lines(recipe: BundleRecipe) -> list[str]:
    if recipe.generator:
        networks = [
            f"the autoencoder and the predictor of the preset {recipe.generator}, which it names",
            "and does not carry, and the aligned branch (arXiv 2410.11835) on",
        ]
    else:
        networks = [
            "an autoencoder and a predictor of our own, and the aligned branch",
            "(arXiv 2410.11835) on",
        ]
    pairs = ", ".join(recipe.aligners)
    own = [spec.name for spec in recipe.autoencoders]
    if recipe.pixels is not None:
        own.append(recipe.pixels.name)
    return [
        "A latent-diffusion detector: the lare branch (LaRE², arXiv 2403.17465) on",
        *networks,
        "tiles at native resolution, fused and calibrated. Every figure below was computed by",
        "`unlatent bundle` when it wrote this file; intervals are 95 %.",
        *(["", f"Pairs were made by the autoencoders of presets: {pairs}."] if pairs else []),
        *(["", f"Pairs were made by generators of its own: {', '.join(own)}."] if own else []),
    ]


def _point_lines(points: Sequence[OperatingPoint]) -> list[str]:
    return [
        "",
        "## Operating points",
        "",
        "Thresholds rest on photographs that no branch trained on, most of them from sources that",
        "no branch has met; each counts by its worst form (as uploaded, saved as JPEG 75, or as",
        "the web serves it).",
        "",
        *operating_point_table(points),
        "",
    ]


def _seen_lines(calibration: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Images of generator families it trained on, prompts it did not",
        "",
        "| form | AUC | aligned alone | lare alone | fusion's gain | calibration error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in (*CALIBRATION_TIERS, RAW):
        part = calibration[name]
        branches = part["auc_by_branch"]
        lines.append(
            f"| {name} | {show_interval(part['auc'])} | {show_interval(branches['aligned'])} |"
            f" {show_interval(branches['lare'])} | {_show_gain(part['fusion_gain'])} |"
            f" {part['expected_calibration_error']:.3f} |"
        )
    lines += [
        "",
        "Fusion's gain is in AUC over the better branch, with a paired bootstrap interval. That",
        "branch is picked on these images, which understates the gain; the fusion was fitted on",
        "them, which overstates it in this table, but not in the one of families never seen.",
        "",
        "| set (clean form) | AUC |",
        "| --- | --- |",
    ]
    return lines + [
        f"| {name} | {show_interval(value)} |"
        for name, value in calibration["clean"]["auc_by_set"].items()
    ]


def _unseen_lines(recipe: BundleRecipe, folds: Sequence[Mapping[str, Any]]) -> list[str]:
    title = ["", "## Autoencoder families and photo sources it never saw (leave one out)", ""]
    if not folds:
        return [*title, "Not measured for this bundle."]
    lines = [
        *title,
        (
            f"Each fold trains from scratch for {recipe.fold_steps} steps (the released network:"
            f" {recipe.aligned_loop.steps}) without one family and one source. "
            + (
                "The generator is the preset, which was published with whatever it learnt from."
                if recipe.generator
                else "The generator is that of the bundle: it learnt from photographs alone, those"
                " of the source left out among them."
            )
        ),
        "",
        (
            "| left out | form | AUC | aligned alone | lare alone | fusion's gain | recall at 1 % |"
            " recall at 5 % |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fold in folds:
        for tier, part in fold["tiers"].items():
            branches = part["auc_by_branch"]
            lines.append(
                f"| {_left_out(fold)} | {tier} | {show_interval(part['auc'])} |"
                f" {show_interval(branches['aligned'])} | {show_interval(branches['lare'])} |"
                f" {_show_gain(part['fusion_gain'])} |"
                f" {show_interval(part['recall_at_1_percent'])} |"
                f" {show_interval(part['recall_at_5_percent'])} |"
            )
    return lines


def _limit_lines(recipe: BundleRecipe, provenance: BundleProvenance) -> list[str]:
    return [
        "",
        "## Limits",
        "",
        *reach_lines(recipe, provenance),
        "* Not measured: GANs, pixel-space diffusion, inpainted parts of photographs, drawings.",
        (
            f"* Large photographs are read in at most {recipe.aligned.max_tiles} tiles of"
            f" {recipe.aligned.tile} pixels."
        ),
    ]


def _show_gain(figure: Mapping[str, Any]) -> str:
    interval = f"{figure['low']:+.3f} to {figure['high']:+.3f}"
    return f"{figure['value']:+.3f} ({interval}) over {figure['best_branch']}"


def _left_out(fold: Mapping[str, Any]) -> str:
    return f"{', '.join(fold['families'])}; {', '.join(fold['sources'])}"
