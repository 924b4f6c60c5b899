"""The quality report as a page of Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from training.evaluation.quality.report import (
        FormFigures,
        Group,
        Mistake,
        Quality,
        RateWithInterval,
    )
    from training.evaluation.scoring import Interval

NONE = "n/a"


def write_page(quality: Quality, plots: Sequence[str], file: Path) -> None:
    """Write the page; `plots` are image files beside it."""
    lines = [
        *_head(quality),
        *_overall(quality),
        *_points(quality),
        *_areas(quality),
        *_recalls(quality),
        *_gains(quality),
        *_accusations(quality),
        *_changes(quality),
        *_shortcut(quality),
        *_mistakes("Worst false accusations", quality.accusations),
        *_mistakes("Worst misses", quality.misses),
        "",
        "## Plots",
        "",
        *(f"![{name}]({name})" for name in plots),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _head(quality: Quality) -> Iterator[str]:
    counts = ", ".join(f"{count} {label}" for label, count in sorted(quality.images.items()))
    yield f"# Quality of the bundle `{quality.bundle}`"
    yield ""
    yield f"Model version `{quality.model_version}`. Images evaluated: {counts}."
    if quality.limit is not None:
        yield f"At most {quality.limit} images of every set."
    if quality.refused:
        yield f"Left out, unreadable or too small: {len(quality.refused)} (in `quality.json`)."
    yield ""
    for warning in quality.warnings:
        yield f"> **Mind:** {warning}"
        yield ""
    for family, seen in quality.families.items():
        yield f"* generator family `{family}`: {_seen(seen=seen)}"
    if quality.families:
        yield ""
    yield (
        "Intervals are 95 %: Clopper-Pearson for rates, a bootstrap over images for areas under the"
        " ROC curve (AUC). Every form but `raw` is harmonised first: what is not a generator's JPEG"
        " is saved as JPEG 75. `raw` is the files as they are, where codecs may help the detector."
        f" `generated` is said from {quality.flag_point} on, `unsure` from {quality.doubt_point}"
        " on; thresholds are the bundle's, none was chosen on these images. Labels are by threshold"
        " alone: in service an image that is mostly blank, drawn in even colours, smaller than a"
        " tile or unlike what was learnt from is `unsure` where it would be `generated`."
    )


def _seen(*, seen: bool) -> str:
    return "trained on" if seen else "**never seen**"


def _overall(quality: Quality) -> Iterator[str]:
    rows = []
    for name, form in quality.forms.items():
        reals, fakes = form.side(generated=False), form.side(generated=True)
        rows.append(
            [
                name,
                _interval(fakes.auc if fakes else None),
                _rate(reals.flagged if reals else None),
                _rate(fakes.flagged if fakes else None),
                _percent(reals.unsure if reals else None),
                _percent(fakes.unsure if fakes else None),
                NONE if form.calibration_error is None else f"{form.calibration_error:.3f}",
            ]
        )
    header = ["form", "AUC", "photographs labelled generated", "generated labelled generated"]
    header += ["unsure photographs", "unsure generated", "calibration error"]
    yield from _table("All images", header, rows)


def _points(quality: Quality) -> Iterator[str]:
    rows = []
    for point in quality.published:
        for name, form in quality.forms.items():
            reals, fakes = form.side(generated=False), form.side(generated=True)
            found = [side.at[point.name] if side else None for side in (reals, fakes)]
            rows.append([point.name, name, *map(_rate, found)])
    yield from _table(
        "The bundle's published operating points",
        ["point", "form", "false positives found", "recall"],
        rows,
    )
    for point in quality.operating_points:
        if not point.supported:
            yield ""
            yield f"{point.name} is unsupported: it needs {point.needs_reals} photographs."


def _title(group: Group) -> str:
    if group.kind == "side":
        return group.name
    seen = "" if group.seen is None else f", {_seen(seen=group.seen)}"
    return f"{group.kind} {group.name} ({group.images}{seen})"


def _by_group(quality: Quality, *, generated: bool) -> dict[str, list[Group]]:
    """Each group of one side in every form, in the order of the forms."""
    found: dict[str, list[Group]] = {}
    for form in quality.forms.values():
        for group in form.groups:
            if group.generated == generated:
                found.setdefault(_title(group), []).append(group)
    return found


def _areas(quality: Quality) -> Iterator[str]:
    for generated, title in ((True, "photographs"), (False, "generated images")):
        rows = [
            [name, *(_interval(group.auc) for group in groups)]
            for name, groups in _by_group(quality, generated=generated).items()
        ]
        yield from _table(f"AUC against all {title}", ["images", *quality.forms], rows)


def _recalls(quality: Quality) -> Iterator[str]:
    for point in quality.published:
        rows = [
            [name, *(_percent(group.at[point.name]) for group in groups)]
            for name, groups in _by_group(quality, generated=True).items()
        ]
        yield from _table(f"Recall at {point.name}", ["images", *quality.forms], rows)


def _gains(quality: Quality) -> Iterator[str]:
    branches = sorted({name for form in quality.forms.values() for name in _branches(form)})
    rows = [
        [
            _title(group),
            name,
            *(_interval(group.branches[branch]) for branch in branches),
            _interval(group.auc),
            _signed(group.gain),
            group.best_branch or NONE,
        ]
        for name, form in quality.forms.items()
        for group in form.groups
        if group.generated and group.kind in {"side", "family"} and group.branches
    ]
    header = ["images", "form", *branches, "fused", "gain over the best branch", "best branch"]
    yield from _table("Each branch alone, and what fusion gains", header, rows)
    if any(group.gain for form in quality.forms.values() for group in form.groups):
        yield ""
        yield (
            "The gain's interval is a paired bootstrap; the best branch is picked on these very"
            " images, which the fusion could not do, so the gain is understated."
        )


def _branches(form: FormFigures) -> Iterable[str]:
    return (branch for group in form.groups for branch in group.branches)


def _accusations(quality: Quality) -> Iterator[str]:
    for title, unsure in (("False accusations by label", False), ("Photographs unsure", True)):
        rows = [
            [name, *(_rate(group.unsure if unsure else group.flagged) for group in groups)]
            for name, groups in _by_group(quality, generated=False).items()
        ]
        yield from _table(title, ["photographs", *quality.forms], rows)


def _changes(quality: Quality) -> Iterator[str]:
    rows = [
        [form, str(changes.real.total), _rate(changes.real), _rate(changes.unsure)]
        for form, changes in quality.changes.items()
    ]
    header = ["form", "images labelled generated as clean", "real in this form", "unsure in it"]
    yield from _table("Labels that a form changes", header, rows)


def _shortcut(quality: Quality) -> Iterator[str]:
    rows = [
        [name, f"{probe.auc:.3f} ({probe.low:.3f} to {probe.high:.3f})"]
        for name, probe in quality.shortcut.items()
    ]
    yield from _table(
        "What nuisances alone tell (harmonised files)", ["probe on", "cross-validated AUC"], rows
    )


def _mistakes(title: str, mistakes: Sequence[Mistake]) -> Iterator[str]:
    rows = [
        [f"`{one.path}`", one.set, f"{one.logit:+.2f}", f"{one.probability:.3f}"]
        for one in mistakes
    ]
    yield from _table(f"{title} (clean)", ["file", "set", "logit", "probability"], rows)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    if not rows:
        yield "None."
        return
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _interval(figure: Interval | None) -> str:
    return NONE if figure is None else f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _signed(figure: Interval | None) -> str:
    if figure is None:
        return NONE
    return f"{figure.value:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})"


def _rate(found: RateWithInterval | None) -> str:
    if found is None:
        return NONE
    interval = f"{found.low:.1%} to {found.high:.1%}"
    return f"{found.hits}/{found.total} = {found.value:.1%} ({interval})"


def _percent(found: RateWithInterval | None) -> str:
    return NONE if found is None else f"{found.value:.1%}"
