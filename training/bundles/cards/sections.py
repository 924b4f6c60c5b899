"""Sections that the cards of several kinds of bundles share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detection.fusion import select_operating_point
from training.bundles.smoke import is_smoke

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detection.bundle import BundleProvenance
    from detection.fusion import LabelPolicy, OperatingPoint
    from training.bundles.recipe import BundleRecipe


def smoke_lines(recipe: BundleRecipe) -> list[str]:
    """Warn at the top of the page when the bundle is a smoke run's."""
    if not is_smoke(recipe):
        return []
    return [
        "**A smoke run: tiny networks, trained for a few steps on drawings. It shows that an",
        "installation can train, it judges nothing, and no figure below says anything of images.**",
        "",
    ]


def operating_point_table(points: Sequence[OperatingPoint]) -> list[str]:
    """List all operating points in a table, also those that are not published."""
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


def label_line(points: Sequence[OperatingPoint], policy: LabelPolicy) -> str:
    """State where each label begins and the prior that probabilities assume."""
    flag = select_operating_point(points, policy.flag)
    doubt = select_operating_point(points, policy.doubt)
    return (
        f"`generated` is said from {flag.name} on, `unsure` from {doubt.name} on. Probabilities"
        f" assume that {policy.prior:.0%} of the images are generated."
    )


def reach_lines(recipe: BundleRecipe, provenance: BundleProvenance) -> list[str]:
    """State what the bundle may be used for, and which families it trained on."""
    if is_smoke(recipe):
        lines = ["* It is no detector: see the top of this page."]
    else:
        lines = [
            "* Trained on few images. It is a real detector within the figures above and nothing",
            "  beyond them: no ground for a sanction by itself.",
        ]
    return [*lines, "* Families seen in training: " + ", ".join(provenance.seen_families) + "."]


def provenance_lines(provenance: BundleProvenance) -> list[str]:
    """Name what the bundle was made from."""
    return [
        "",
        "## Provenance",
        "",
        f"* training data digest: `{provenance.snapshot_digest}`",
        f"* code revision: `{provenance.code_revision}`",
        f"* terms of the data: {provenance.data_licence}",
        "",
    ]


def show_interval(figure: Mapping[str, float]) -> str:
    """Show a figure with its 95 % interval."""
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
