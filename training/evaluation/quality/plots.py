"""The quality report's plots, drawn without a display."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from training.evaluation.scoring import RAW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from detection.bundle import Bundle
    from training.evaluation.quality.report import Mistake, Quality
    from training.evaluation.scoring import Scored

DPI = 110
GENERATED_COLOUR, REAL_COLOUR, NEUTRAL = "tab:red", "tab:blue", "0.35"
#: Forms with a panel of their own.
SHOWN = ("clean", "web", RAW)
#: Forms along the robustness curves, mildest first.
CURVE = (
    *("raw", "clean", "webp80", "screenshot", "resize0.75", "resize0.5", "resize1.5", "resize2"),
    *("web", "hard"),
)
SHEET_COLUMNS, SHEET_ROWS = 6, 2
THUMBNAIL = 256


def draw_plots(
    quality: Quality, bundle: Bundle, scored: Mapping[str, Scored], data: Path, out: Path
) -> list[str]:
    """Draw every plot that the images allow into `out`; returns the files' names."""
    drawn: dict[str, Figure] = {}
    if len(quality.images) == 2:
        drawn["roc.png"] = roc(quality, bundle, scored)
        drawn["reliability.png"] = reliability_diagram(quality)
    drawn["histograms.png"] = histograms(quality, bundle, scored["clean"])
    drawn["robustness.png"] = robustness(quality)
    drawn["mistakes.png"] = contact_sheet(quality, data)
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=DPI)
    return list(drawn)


def roc(quality: Quality, bundle: Bundle, scored: Mapping[str, Scored]) -> Figure:
    """One panel a form: a curve a family, and the published points where they fell."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    for axes, form in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        part = scored[form]
        fused = part.logits.fused(bundle.manifest.fusion)
        generated = part.logits.generated
        families = np.array([entry.family for entry in part.entries])
        for family, seen in quality.families.items():
            keep = ~generated | (families == family)
            label = f"{family} ({'seen' if seen else 'never seen'})"
            _curve(axes, fused[keep], generated[keep], label, style="-" if seen else "--")
        _curve(axes, fused, generated, "all", style="-", colour="black")
        sides = [quality.forms[form].side(generated=flag) for flag in (False, True)]
        for point in quality.published:
            x, y = (side.at[point.name].value if side else 0.0 for side in sides)
            axes.plot(x, y, "o", color="black", markersize=5)
            axes.annotate(point.name, (x, y), (6, -10), textcoords="offset points", fontsize=8)
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
        axes.set(title=form, xlabel="false positives", ylabel="recall")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.legend(loc="lower right", fontsize=8)
    figure.suptitle("ROC; dots: the bundle's published operating points")
    return figure


def _curve(
    axes: Axes,
    values: NDArray[np.float64],
    generated: NDArray[np.bool_],
    label: str,
    *,
    style: str,
    colour: str | None = None,
) -> None:
    false_positives, recall, _ = roc_curve(generated, values)
    axes.plot(false_positives, recall, style, color=colour, linewidth=1.4, label=label)


def reliability_diagram(quality: Quality) -> Figure:
    """Stated against found share, one panel a form; a dot's area is its share of the weight."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    for axes, form in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        found = quality.forms[form]
        stated = [one.stated for one in found.bins]
        shares = [one.found for one in found.bins]
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
        axes.plot(stated, shares, color=REAL_COLOUR, linewidth=1)
        sizes = [20 + 600 * one.mass for one in found.bins]
        axes.scatter(stated, shares, s=sizes, color=REAL_COLOUR, alpha=0.6)
        axes.set(title=f"{form}: expected calibration error {found.calibration_error:.3f}")
        axes.set(xlabel="stated probability at even odds", ylabel="share found generated")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05))
    figure.suptitle("Reliability; both classes weigh alike")
    return figure


def histograms(quality: Quality, bundle: Bundle, scored: Scored) -> Figure:
    """Fused logits of every set, with the published thresholds."""
    fused = scored.logits.fused(bundle.manifest.fusion)
    generated = scored.logits.generated
    panels = [(str(name), False) for name in sorted(set(scored.sets[~generated]))]
    panels += [(str(name), True) for name in sorted(set(scored.sets[generated]))]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.4 * rows + 0.6), layout="constrained")
    low, high = np.quantile(fused, [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-3), 41)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, (name, side) in zip(grid, panels, strict=False):
        inside = fused[(scored.sets == name) & (generated == side)]
        colour = GENERATED_COLOUR if side else REAL_COLOUR
        axes.hist(np.clip(inside, edges[0], edges[-1]), edges, color=colour)
        for point in quality.published:
            axes.axvline(point.threshold, color=NEUTRAL, linewidth=1, linestyle=":")
        axes.set_title(f"{name} ({'generated' if side else 'real'}, {len(inside)})", fontsize=9)
        axes.set_xlim(edges[0], edges[-1])
        axes.tick_params(labelsize=8, labelbottom=True)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    names = ", ".join(point.name for point in reversed(quality.published))
    figure.suptitle(f"Fused logit, clean; dotted, left to right: {names}")
    return figure


def robustness(quality: Quality) -> Figure:
    """Area under the curve, recall and false accusations by label, over the forms."""
    figure = Figure(figsize=(16, 5.4), layout="constrained")
    area, recall, accused = figure.subplots(1, 3)
    forms = [form for form in CURVE if form in quality.forms]
    for kind, generated in (("family", True), ("source", False)):
        names = [group.name for group in quality.forms[forms[0]].of(kind)]
        for name in names:
            groups = [
                next(group for group in quality.forms[form].of(kind) if group.name == name)
                for form in forms
            ]
            label = f"{name} ({groups[0].images})"
            style = "o--" if groups[0].seen is False else "o-"
            if groups[0].auc is not None and generated:
                areas = [group.auc.value if group.auc else np.nan for group in groups]
                area.plot(forms, areas, style, markersize=4, label=label)
            flagged = [group.flagged.value for group in groups]
            panel = recall if generated else accused
            panel.plot(forms, flagged, style, markersize=4, label=label)
    area.set(title="AUC by family (dashed: never seen)")
    area.set_ylim(min(0.4, area.get_ylim()[0]), 1.01)
    area.axhline(0.5, color="0.8", linewidth=1, zorder=0)
    recall.set(title="share labelled generated, by family", ylim=(-0.02, 1.02))
    accused.set(title="photographs labelled generated, by source")
    accused.set_ylim(bottom=-0.002)
    for axes in (area, recall, accused):
        axes.tick_params(axis="x", rotation=45)
        if axes.lines and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def contact_sheet(quality: Quality, data: Path) -> Figure:
    """The worst false accusations and the worst misses, with their files' names."""
    parts = (
        ("Worst false accusations: photographs labelled generated", quality.accusations),
        ("Worst misses: generated images labelled real", quality.misses),
    )
    heights = [0.5 + 3 * _sheet_rows(mistakes) for _, mistakes in parts]
    figure = Figure(figsize=(2.5 * SHEET_COLUMNS, sum(heights)), layout="constrained")
    panels = np.asarray(figure.subfigures(2, 1, height_ratios=heights)).tolist()
    for panel, (title, mistakes) in zip(panels, parts, strict=True):
        panel.suptitle(f"{title} (clean)" if mistakes else f"{title}: none")
        if mistakes:
            grid = panel.subplots(_sheet_rows(mistakes), SHEET_COLUMNS, squeeze=False).ravel()
            for axes in grid:
                axes.set_axis_off()
            _paste(grid, mistakes, data)
    return figure


def _sheet_rows(mistakes: Sequence[Mistake]) -> int:
    return min(SHEET_ROWS, -(-len(mistakes) // SHEET_COLUMNS))


def _paste(grid: Sequence[Axes], mistakes: Sequence[Mistake], data: Path) -> None:
    for axes, mistake in zip(grid, mistakes, strict=False):
        with Image.open(data / mistake.path) as image:
            picture = image.convert("RGB")
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        axes.imshow(np.asarray(picture))
        name = "\n".join(textwrap.wrap(mistake.path.rsplit("/", 1)[-1], 28)[:3])
        axes.set_title(f"{mistake.set}  {mistake.logit:+.1f}\n{name}", fontsize=7)
