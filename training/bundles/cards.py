"""Cards: the pages that bundles carry, written from their figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detection.fusion import select_operating_point
from training.bundles.smoke import is_smoke
from training.evaluation.scoring import CALIBRATION_TIERS, RAW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detection.bundle import Bundle, BundleProvenance
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
    calibration = metrics["calibration"]
    flag = select_operating_point(points, policy.flag)
    doubt = select_operating_point(points, policy.doubt)
    lines = [
        f"# The bundle `{recipe.name}`",
        "",
        *_smoke_lines(recipe),
        *_method_lines(recipe),
        "",
        "## Operating points",
        "",
        "Thresholds rest on photographs that no branch trained on, most of them from sources that",
        "no branch has met; each counts by its worst form (as uploaded, saved as JPEG 75, or as",
        "the web serves it).",
        "",
        *_operating_points(points),
        "",
        (
            f"`generated` is said from {flag.name} on, `unsure` from {doubt.name} on. Probabilities"
            f" assume that {policy.prior:.0%} of the images are generated."
        ),
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
            f"| {name} | {_show(part['auc'])} | {_show(branches['aligned'])} |"
            f" {_show(branches['lare'])} | {_show_gain(part['fusion_gain'])} |"
            f" {part['expected_calibration_error']:.3f} |"
        )
    lines += [
        "",
        "Fusion's gain is in AUC over the better branch, with a paired bootstrap interval. That",
        "branch is picked on these images, which understates the gain; the fusion was fitted on",
        "them, which overstates it in this table, but not in the one of families never seen.",
    ]
    lines += ["", "| set (clean form) | AUC |", "| --- | --- |"]
    lines += [
        f"| {name} | {_show(value)} |" for name, value in calibration["clean"]["auc_by_set"].items()
    ]
    lines += _unseen_lines(recipe, metrics["unseen"])
    lines += [
        "",
        "## Limits",
        "",
        *_reach_lines(recipe),
        "* Families seen in training: " + ", ".join(provenance.seen_families) + ".",
        "* Not measured: GANs, pixel-space diffusion, inpainted parts of photographs, drawings.",
        (
            f"* Large photographs are read in at most {recipe.aligned.max_tiles} tiles of"
            f" {recipe.aligned.tile} pixels."
        ),
        "",
        "## Provenance",
        "",
        f"* training data digest: `{provenance.snapshot_digest}`",
        f"* code revision: `{provenance.code_revision}`",
        f"* terms of the data: {provenance.data_licence}",
        "",
    ]
    return "\n".join(lines)


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
    return [
        "A latent-diffusion detector: the lare branch (LaRE², arXiv 2403.17465) on",
        *networks,
        "tiles at native resolution, fused and calibrated. Every figure below was computed by",
        "`unlatent bundle` when it wrote this file; intervals are 95 %.",
        *(["", f"Pairs were made by the autoencoders of presets: {pairs}."] if pairs else []),
    ]


def _smoke_lines(recipe: BundleRecipe) -> list[str]:
    if not is_smoke(recipe):
        return []
    return [
        "**A smoke run: tiny networks, trained for a few steps on drawings. It shows that an",
        "installation can train, it judges nothing, and no figure below says anything of images.**",
        "",
    ]


def _reach_lines(recipe: BundleRecipe) -> list[str]:
    if is_smoke(recipe):
        return ["* It is no detector: see the top of this page."]
    return [
        "* Trained on few images. It is a real detector within the figures above and nothing",
        "  beyond them: no ground for a sanction by itself.",
    ]


def backbone_card(
    recipe: BundleRecipe,
    metrics: Mapping[str, Any],
    points: Sequence[OperatingPoint],
    policy: LabelPolicy,
    provenance: BundleProvenance,
) -> str:
    """Write the card of a bundle with a backbone from its figures."""
    backbone = recipe.backbone
    assert backbone is not None  # noqa: S101  # the caller's recipe
    flag = select_operating_point(points, policy.flag)
    doubt = select_operating_point(points, policy.doubt)
    lines = [
        f"# The bundle `{recipe.name}`",
        "",
        *_smoke_lines(recipe),
        (
            f"A detector of generated images that fits a CPU: `{backbone.architecture}`, trained on"
            f" ImageNet and frozen, sees the picture's centre square at {backbone.side} pixels; a"
            " multinomial regression, whose classes are the families of generators and the kinds of"
            " real pictures, reads the means and spreads of its features. Every figure below"
            " was computed by `unlatent bundle` when it wrote this file; intervals are 95 %, by a"
            " bootstrap of whole prompts and scenes or after Clopper and Pearson."
        ),
        "",
        "## Operating points",
        "",
        "Thresholds rest on real pictures that were scored by a head which met neither their",
        "source nor the generator families of its fold. A picture counts by its worst form: as",
        "uploaded, saved as JPEG 75, as the web serves it (at most 768 pixels, JPEG 60), and as a",
        "thumbnail that was passed on (at most 512 pixels, JPEG 40).",
        "",
        *_operating_points(points),
        "",
        *(
            f"* {point.name}: {point.others_flagged} of {point.others} real pictures that are no"
            " photographs (drawings, documents, screenshots, games, renders, art) lie above it."
            for point in points
            if point.supported and point.others
        ),
        "",
        (
            f"`generated` is said from {flag.name} on, `unsure` from {doubt.name} on. Probabilities"
            f" assume that {policy.prior:.0%} of the images are generated."
        ),
        *_fold_lines(metrics["unseen"]),
        *_pooled_lines(metrics["pooled"]),
        *_thumbnail_lines(metrics["unseen"], metrics["thumbnail_auc"]),
        "",
        "## Limits",
        "",
        *_reach_lines(recipe),
        "* Families seen in training: " + ", ".join(provenance.seen_families) + ".",
        "* It sees the centre square alone: what lies beside it in a long picture decides nothing.",
        "* The generator in the bundle makes pairs for retraining; it takes no part in the score.",
        "* Not measured: GANs, pixel-space diffusion, inpainted parts of photographs.",
        f"* In service a picture whose novelty is above {metrics['max_novelty']:.2f} (one in a",
        "  thousand of those learnt from; noise) is `unsure`, and so is one that is nearly blank,",
        "  drawn in even colours or tiny. The figures above are by threshold alone.",
        "",
        "## Provenance",
        "",
        f"* training data digest: `{provenance.snapshot_digest}`",
        f"* code revision: `{provenance.code_revision}`",
        f"* terms of the data: {provenance.data_licence}",
        "",
    ]
    return "\n".join(lines)


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
                f"| {fold['name']} | {form} | {_show(part['auc'])} |"
                f" {_show(part['recall_at_1_percent'])} | {' | '.join(shares)} |"
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
        f"| {fold['name']} | {_show(fold['forms']['web']['auc'])} | {_show(thumbnail)} |"
        for fold, thumbnail in zip(folds, thumbnails, strict=True)
    ]


def _share(part: Mapping[str, float]) -> str:
    if not part["total"]:
        return "-"
    value = part["hits"] / part["total"]
    return f"{part['hits']}/{part['total']} = {value:.1%} ({part['low']:.1%} to {part['high']:.1%})"


def challenger_card(
    champion: Bundle,
    points: Sequence[OperatingPoint],
    provenance: BundleProvenance,
    figures: Mapping[str, Any],
) -> str:
    """Write the challenger's card from its figures."""
    manifest = champion.manifest
    lines = [
        f"# The bundle `{manifest.name}`, taught further",
        "",
        f"Fine-tuned from model version `{champion.model_version}` on a site's own images.",
        "",
        (
            f"Calibrated on {figures['photographs']} photographs and {figures['generated']}"
            " generated images that neither model trained on. An image counts as often as the share"
            " says that it was sampled with, which makes the photographs worth"
            f" {figures['effective_photographs']:g}; a photograph counts by its worst form (as"
            " uploaded, saved as JPEG 75, or as the web serves it)."
        ),
        "",
        *_operating_points(points),
        "",
        f"`generated` is said from {select_operating_point(points, manifest.policy.flag).name} on.",
        "",
        "* families seen in training: " + (", ".join(provenance.seen_families) or "none"),
        f"* training data digest: `{provenance.snapshot_digest}`",
        f"* terms of the data: {provenance.data_licence}",
        "",
    ]
    return "\n".join(lines)


def _operating_points(points: Sequence[OperatingPoint]) -> list[str]:
    lines = [
        "| false-positive rate aimed at | found | interval | photographs | recall | state |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for point in points:
        state = "published" if point.supported else f"unsupported, needs {point.needs_reals}"
        lines.append(
            f"| {point.target:.1%} | {point.measured:.2%} | {point.low:.2%} to {point.high:.2%} |"
            f" {point.reals} | {point.recall:.1%} | {state} |"
        )
    return lines


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
                f"| {_left_out(fold)} | {tier} | {_show(part['auc'])} |"
                f" {_show(branches['aligned'])} | {_show(branches['lare'])} |"
                f" {_show_gain(part['fusion_gain'])} |"
                f" {_show(part['recall_at_1_percent'])} | {_show(part['recall_at_5_percent'])} |"
            )
    return lines


def _show(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _show_gain(figure: Mapping[str, Any]) -> str:
    interval = f"{figure['low']:+.3f} to {figure['high']:+.3f}"
    return f"{figure['value']:+.3f} ({interval}) over {figure['best_branch']}"


def _left_out(fold: Mapping[str, Any]) -> str:
    return f"{', '.join(fold['families'])}; {', '.join(fold['sources'])}"
