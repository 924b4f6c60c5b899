"""The alignment audit: probes whether anything but a decoder's artefacts separates the classes.

A shortcut probe (a forest that sees nuisances only) is cross-validated with pairs kept
together; near 0.5 its AUC says that files give nothing away. Pairs are also laid over each other:
a crop or a tone that moved shows there long before a probe sees it. A data set beyond a limit is
refused, and the refusal names what betrays it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from detection.errors import SettingsError, UnlatentError
from training.data.originals import Unreadable
from training.evaluation.alignment_measures import Alignment, measure_alignment, probe
from training.evaluation.distances import Distances, measure_distances
from training.evaluation.reencoding_advice import ReencodingAdvice, ReencodingSample
from training.evaluation.shortcut_features import (
    PairDifferences,
    PairSides,
    ShortcutFeatures,
    SourceFile,
    read_shortcut_features,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from training.data.shards import SampleFiles
    from training.evaluation.alignment_measures import Probe
    from training.evaluation.scoring import Interval

    Features = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float64]]

SIDES = {"real": False, "generated": True}
#: Fewer images a side say nothing about a data set.
MIN_SIDE_IMAGES = 10
#: The whole data set among its kinds of pairs, and all nuisances among their groups.
ALL = "all"
#: The field of a measure in `Alignment`, and its name in the report.
MEASURES = {
    "probe": "AUC of a probe",
    "mmd_squared": "MMD²",
    "frechet": "Fréchet distance",
    "information": "mutual information (nats)",
}


class DatasetRefused(UnlatentError):
    """The two sides of the data set differ by more than a decoder's artefacts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLimits:
    """What a data set may show; a figure is over its limit when its interval's lower end is.

    Sharpness has one limit of its own, on the AUC alone: a decoder's smoothing is part of what is
    to be learnt. Those of the last three keep from chance and from a codec: sides drawn from one
    distribution, of 20 and of 60 images, stay under six tenths of each, and PNG against JPEG of
    quality 60 is over six times each (tests/unit/training/evaluation/test_alignment_measures.py).
    """

    probe_auc: float = 0.6
    sharpness_auc: float = 0.8
    shift_px: float = 0.15
    tone_levels: float = 3.0
    mmd_squared: float = 0.1
    frechet: float = 1.0
    information: float = 0.1

    def of(self, group: str) -> dict[str, float]:
        """Return how far each measure may go, by its field in `Alignment`."""
        if group == ALL:
            return {}
        if group == "sharpness":
            return {"probe": self.sharpness_auc}
        return {
            "probe": self.probe_auc,
            "mmd_squared": self.mmd_squared,
            "frechet": self.frechet,
            "information": self.information,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentReport:
    """What was measured of a data set; `refusals` is empty when it may be trained on.

    By side: `formats` and `sources` count images, `sizes` are the least, median and greatest length
    of the shorter side in pixels. `kinds` holds the measures by kind of pair, that is the source of
    its generated side, and group of nuisances; "all" is the whole data set, and all nuisances.
    `advice` is given when a figure is over its limit, even if its interval's lower end is not.
    """

    reals: int
    generated: int
    formats: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    sizes: dict[str, tuple[int, int, int]]
    kinds: dict[str, dict[str, Alignment]]
    pairs: PairDifferences | None
    distances: Distances | None
    unreadable: tuple[str, ...]
    limits: AuditLimits
    refusals: tuple[str, ...]
    advice: ReencodingAdvice | None

    @property
    def probes(self) -> dict[str, Probe]:
        """The probes of the whole data set by group of nuisances."""
        return {name: found.probe for name, found in self.kinds[ALL].items()}

    def require(self) -> None:
        """Raise `DatasetRefused` with every reason, unless the data set passes."""
        if self.refusals:
            raise DatasetRefused("; ".join(self.refusals))

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=1)

    def to_markdown(self) -> str:
        """Return the report as a page for people."""
        lines = [
            "# Alignment report",
            "",
            (
                f"{self.reals} real and {self.generated} generated images;"
                f" {len(self.unreadable)} files could not be read."
            ),
            "",
            "| side | codecs | shorter side, px | sources |",
            "| --- | --- | --- | --- |",
            *(
                f"| {side} | {_counted(self.formats[side])}"
                f" | {least} to {greatest}, median {median} | {_counted(self.sources[side])} |"
                for side, (least, median, greatest) in self.sizes.items()
            ),
            "",
            f"| pairs | nuisances | {' | '.join(MEASURES.values())} |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {kind} | {name} | {' | '.join(_cells(found))} |"
                for kind, measured in self.kinds.items()
                for name, found in measured.items()
            ),
            "",
            _stated(self.limits),
        ]
        if self.pairs is not None:
            lines += [
                "",
                (
                    f"{self.pairs.pairs} pairs, {self.pairs.resized} of them resized: displacement"
                    f" {self.pairs.shift_px:.3f} px, tone {self.pairs.tone_levels:.2f} grey levels."
                ),
            ]
        if self.distances is not None:
            found = self.distances
            lines += [
                "",
                (
                    f"Feature space: {found.space}. MMD²"
                    f" {found.mmd_squared:.5f} (p {found.mmd_p:.3f}), sliced Wasserstein"
                    f" {found.wasserstein:.4f}, Fréchet {found.frechet:.4f}."
                ),
            ]
        verdict = [f"* {reason}" for reason in self.refusals] or ["Nothing betrays a side."]
        if self.advice is not None:
            verdict += ["", str(self.advice)]
        return "\n".join([*lines, "", "## Refused" if self.refusals else "## Passed", "", *verdict])


def run_audit(
    files: Iterable[SourceFile],
    *,
    limits: AuditLimits | None = None,
    features: Features | None = None,
    space: str = "",
    seed: int = 0,
) -> AlignmentReport:
    """Audit the two sides of a data set.

    `features` maps RGB images to vectors (N, D) of the feature space called `space`; without it no
    distances are computed. Files that cannot be read are listed, not counted. Raises
    `SettingsError` when a side has too few images.
    """
    limits = limits or AuditLimits()
    read: list[tuple[SourceFile, ShortcutFeatures]] = []
    unreadable: list[str] = []
    vectors: list[NDArray[np.float64]] = []
    pairs, sample = PairSides(), ReencodingSample()
    for file in files:
        try:
            found = read_shortcut_features(file)
        except Unreadable:
            unreadable.append(file.name)
            continue
        if features is not None:
            vectors.append(features([found.pixels])[0])
        pairs.add(file, found)
        sample.add(file, found)
        read.append((replace(file, data=b""), found.without_pixels()))
    labels = np.array([file.generated for file, _ in read], dtype=bool)
    _require_both(labels)
    groups = [file.group for file, _ in read]
    kinds = _kinds(read, labels, seed)
    measured = pairs.measured()
    over = list(_over(kinds, limits))
    refusals = (*_refusals(over), *_pair_refusals(measured, limits))
    return AlignmentReport(
        reals=int((~labels).sum()),
        generated=int(labels.sum()),
        formats=_by_side((file.generated, found.kind) for file, found in read),
        sources=_by_side((file.generated, file.source) for file, _ in read),
        sizes=_sizes(read),
        kinds=kinds,
        pairs=measured,
        distances=measure_distances(np.array(vectors), labels, groups, space) if vectors else None,
        unreadable=tuple(unreadable),
        limits=limits,
        refusals=refusals,
        advice=sample.advise(seed) if over or refusals else None,
    )


def run_probes(files: Iterable[SourceFile], *, seed: int = 0) -> dict[str, Probe]:
    """Probe each group of nuisances of readable files, without any other measure.

    Raises `Unreadable`, and `SettingsError` when a side has too few images.
    """
    labels, groups, read = [], [], []
    for file in files:
        read.append(read_shortcut_features(file).without_pixels())
        labels.append(file.generated)
        groups.append(file.group)
    flags = np.array(labels, dtype=bool)
    _require_both(flags)
    return {name: probe(values, flags, groups, seed) for name, values in _columns(read).items()}


def pair_files(samples: Iterable[SampleFiles]) -> Iterator[SourceFile]:
    """Return both sides of every pair of a data set, in the form that is audited."""
    for sample in samples:
        for aligner, data in sample.reconstructions.items():
            # A pair an aligner: with several, the original stands in each of them.
            group = f"{sample.key}:{aligner}"
            yield SourceFile(
                name=sample.key,
                data=sample.image,
                generated=False,
                group=group,
                source=sample.source,
            )
            yield SourceFile(
                name=sample.key, data=data, generated=True, group=group, source=aligner
            )


def _require_both(labels: NDArray[np.bool_]) -> None:
    for name, count in (("real", int((~labels).sum())), ("generated", int(labels.sum()))):
        if count < MIN_SIDE_IMAGES:
            raise SettingsError(
                f"the data set has {count} readable {name} images: an audit needs at least"
                f" {MIN_SIDE_IMAGES} of either side"
            )


def _columns(found: Sequence[ShortcutFeatures]) -> dict[str, NDArray[np.float64]]:
    columns = {name: np.array([one.groups[name] for one in found]) for name in found[0].groups}
    return {**columns, ALL: np.concatenate(list(columns.values()), axis=1)}


def _kinds(
    read: Sequence[tuple[SourceFile, ShortcutFeatures]], labels: NDArray[np.bool_], seed: int
) -> dict[str, dict[str, Alignment]]:
    """Measure the whole data set and, where there are several, each kind of pair."""
    columns = _columns([found for _, found in read])
    groups = np.array([file.group for file, _ in read])
    kinds = {ALL: np.arange(len(read))}
    sources = np.array([file.source for file, _ in read])
    names, counts = np.unique(sources[labels], return_counts=True)
    for name in names[counts >= MIN_SIDE_IMAGES] if len(names) > 1 else ():
        own = labels & (sources == name)
        partners = ~labels & np.isin(groups, groups[own])
        # Where few are paired, every real image stands on the other side.
        others = partners if partners.sum() >= MIN_SIDE_IMAGES else ~labels
        kinds[str(name)] = np.flatnonzero(own | others)
    return {
        kind: {
            name: measure_alignment(values[rows], labels[rows], groups[rows].tolist(), seed)
            for name, values in columns.items()
        }
        for kind, rows in kinds.items()
    }


def _by_side(named: Iterable[tuple[bool, str]]) -> dict[str, dict[str, int]]:
    counts = Counter(named)
    return {
        side: {name: count for (generated, name), count in counts.items() if generated == flag}
        for side, flag in SIDES.items()
    }


def _sizes(read: Sequence[tuple[SourceFile, ShortcutFeatures]]) -> dict[str, tuple[int, int, int]]:
    sizes = {}
    for side, flag in SIDES.items():
        shorter = sorted(
            int(min(found.groups["size"][:2])) for file, found in read if file.generated == flag
        )
        sizes[side] = (shorter[0], shorter[len(shorter) // 2], shorter[-1])
    return sizes


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or 'not stated'} {count}" for name, count in sorted(counts.items()))


def _cells(found: Alignment) -> Iterator[str]:
    for field in MEASURES:
        figure: Probe | Interval = getattr(found, field)
        yield f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _stated(limits: AuditLimits) -> str:
    named = ", ".join(f"{MEASURES[field]} {limit:g}" for field, limit in limits.of("").items())
    return (
        f"Limits, of the lower ends of these 95 % intervals: {named}; of sharpness AUC"
        f" {limits.sharpness_auc:g} alone; of all nuisances together none."
    )


@dataclass(frozen=True, slots=True)
class _Over:
    """A figure that is over its limit; `sure` when its interval's lower end is, too."""

    kind: str
    group: str
    words: str
    probe_low: float
    sure: bool


def _over(kinds: dict[str, dict[str, Alignment]], limits: AuditLimits) -> Iterator[_Over]:
    for kind, measured in kinds.items():
        for group, found in measured.items():
            for field, limit in limits.of(group).items():
                figure: Probe | Interval = getattr(found, field)
                if figure.value > limit:
                    words = (
                        f"{MEASURES[field]} {figure.value:.3f}"
                        f" ({figure.low:.3f} to {figure.high:.3f}; limit {limit:.2f})"
                    )
                    yield _Over(kind, group, words, found.probe.low, figure.low > limit)


def _refusals(over: Sequence[_Over]) -> Iterator[str]:
    """One reason for each kind of pair and group of nuisances, the surest first."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in sorted(over, key=lambda one: -one.probe_low):
        if one.sure:
            reasons.setdefault((one.kind, one.group), []).append(one.words)
    for (kind, group), words in reasons.items():
        of = "" if kind == ALL else f" of the pairs by {kind}"
        yield f"{group} betrays the side{of}, over the limit: {', '.join(words)}"


def _pair_refusals(pairs: PairDifferences | None, limits: AuditLimits) -> Iterator[str]:
    if pairs is None:
        return
    if pairs.resized:
        yield f"size betrays the side: {pairs.resized} of {pairs.pairs} pairs differ in size"
    if pairs.shift_px > limits.shift_px:
        yield (
            f"crop betrays the side: one picture lies {pairs.shift_px:.2f} px off the other, over"
            f" the limit {limits.shift_px:.2f} px"
        )
    if pairs.tone_levels > limits.tone_levels:
        yield (
            f"tone betrays the side: the pairs differ by {pairs.tone_levels:.1f} grey levels, over"
            f" the limit {limits.tone_levels:.1f}"
        )
