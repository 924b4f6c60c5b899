"""The page about a comparison: the decision of the gate, its figures, plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from training.evaluation.comparison import FORMS, share_found

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.evaluation.promotion_gate import GateDecision, PairedPredictions

DPI = 110
_BINS = 30


def write_report(
    folder: Path,
    decision: GateDecision,
    tiers: Mapping[str, PairedPredictions],
    losses: Mapping[str, Mapping[int, float]],
    *,
    facts: Mapping[str, object],
) -> Path:
    """Write `report.md` and its plots into a folder; returns the page.

    `losses` are those on groups held back, by branch and step; `facts` go into the page as they
    are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"scores.png": _scores(tiers[FORMS[0]]), "tiers.png": _tiers(tiers)} if tiers else {}
    if any(losses.values()):
        plots["training.png"] = _training(losses)
    for name, figure in plots.items():
        figure.savefig(folder / name, dpi=DPI)
    page = folder / "report.md"
    page.write_text("\n".join(_lines(decision, facts, list(plots))) + "\n", encoding="utf-8")
    return page


def _lines(decision: GateDecision, facts: Mapping[str, object], plots: list[str]) -> list[str]:
    lines = [
        "# Challenger against champion",
        "",
        "The gate let the challenger through:" if decision.passed else "The gate refused it:",
        "",
        *(f"* {reason}" for reason in decision.reasons),
        "",
        *(f"* {name}: {value}" for name, value in facts.items()),
    ]
    if decision.figures:
        lines += [
            "",
            (
                "Recall is at the champion's false-positive rate of"
                f" {decision.false_positive_rate:.2%}; tiers and sources are shares of right"
                " labels at the thresholds that each serves (classes weighted alike in tiers);"
                " calibration is the expected error of probabilities. Intervals are of the"
                " difference, 95 %, by paired bootstrap."
            ),
            "",
            "| figure | champion | challenger | difference | images |",
            "| --- | --- | --- | --- | --- |",
        ]
    lines += [
        f"| {name} | {one.champion:.3f} | {one.challenger:.3f} |"
        f" {one.low:+.3f} to {one.high:+.3f} | {one.images} |"
        for name, one in decision.figures.items()
    ]
    for name in plots:
        lines += ["", f"![{name.removesuffix('.png')}]({name})"]
    return lines


def _scores(paired: PairedPredictions) -> Figure:
    """One panel a model: fused logits of photographs and generated images, and its threshold."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    sides = (("champion", paired.champion), ("challenger", paired.challenger))
    for axes, (role, said) in zip(panels, sides, strict=True):
        edges = np.histogram_bin_edges(said.logits, _BINS)
        for name, mask, colour in (
            ("photographs", ~paired.generated, "tab:blue"),
            ("generated", paired.generated, "tab:red"),
        ):
            axes.hist(said.logits[mask], edges, alpha=0.55, color=colour, label=name)
        axes.axvline(said.threshold, color="0.2", linestyle="--", label="says generated from here")
        axes.set(title=role, xlabel="fused logit")
    panels[0].set_ylabel("images")
    panels[0].legend()
    return figure


def _tiers(tiers: Mapping[str, PairedPredictions]) -> Figure:
    """Bars by tier: recall and false positives of both at the thresholds they serve."""
    found = share_found(tiers)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    places = np.arange(len(found))
    for axes, figure_name, title in zip(
        figure.subplots(1, 2),
        ("recall", "false"),
        ("generated images found", "photographs accused"),
        strict=True,
    ):
        for offset, role in ((-0.2, "champion"), (0.2, "challenger")):
            shares = [100 * row.get(f"{role} {figure_name}", 0.0) for row in found.values()]
            axes.bar(places + offset, shares, 0.38, label=role)
        axes.set_xticks(places, list(found))
        axes.set(title=title, ylabel="%")
    figure.axes[0].legend()
    return figure


def _training(losses: Mapping[str, Mapping[int, float]]) -> Figure:
    """Loss on the groups held back, by step or, of a head, by try; first is the champion's."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, measured in losses.items():
        if measured:
            axes.plot(list(measured), list(measured.values()), marker="o", label=name)
    axes.set(xlabel="step, or try of a head", ylabel="loss on groups held back", title="training")
    axes.legend()
    return figure
