"""The card of a challenger: a bundle that was trained further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detection.fusion import select_operating_point
from training.bundles.cards.sections import operating_point_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detection.bundle import Bundle, BundleProvenance
    from detection.fusion import OperatingPoint


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
        *operating_point_table(points),
        "",
        f"`generated` is said from {select_operating_point(points, manifest.policy.flag).name} on.",
        "",
        "* families seen in training: " + (", ".join(provenance.seen_families) or "none"),
        f"* training data digest: `{provenance.snapshot_digest}`",
        f"* terms of the data: {provenance.data_licence}",
        "",
    ]
    return "\n".join(lines)
