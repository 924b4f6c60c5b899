"""The alignment audit: probes whether anything but a decoder's artefacts separates the classes.

A shortcut probe (a forest that sees nuisances only) is cross-validated with pairs kept
together; near 0.5 its AUC says that files give nothing away. Pairs are also laid over each other:
a crop or a tone that moved shows there long before a probe sees it. A data set beyond a limit is
refused, and the refusal names what betrays it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

from detection.errors import SettingsError, UnlatentError
from training.data.originals import Unreadable
from training.evaluation.distances import frechet, maximum_mean_discrepancy, sliced_wasserstein
from training.evaluation.shortcut_features import (
    PairDifference,
    ShortcutFeatures,
    SourceFile,
    measure_pair_difference,
    read_shortcut_features,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from training.data.shards import SampleFiles

    Features = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float64]]

FOLDS = 5
TREES = 60
BOOTSTRAPS = 300
SIDES = {"real": False, "generated": True}
#: Fewer images a side say nothing about a data set.
MIN_SIDE_IMAGES = 10


class DatasetRefused(UnlatentError):
    """The two sides of the data set differ by more than a decoder's artefacts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLimits:
    """What a data set may show; a probe is over its limit when its interval's lower end is.

    Sharpness has a limit of its own: a decoder's smoothing is part of what is to be learnt.
    """

    probe_auc: float = 0.6
    sharpness_auc: float = 0.8
    shift_px: float = 0.15
    tone_levels: float = 3.0

    def of(self, group: str) -> float:
        """Return the AUC that a probe on one group of nuisances may reach."""
        return self.sharpness_auc if group == "sharpness" else self.probe_auc


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Cross-validated AUC of a classifier on one group of nuisances, with its 95 % interval."""

    auc: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDifferences:
    """Medians over the pairs: displacement (pixels), largest change of tone (grey levels).

    `resized` counts pairs whose sides differ in size; they have neither.
    """

    pairs: int
    resized: int
    shift_px: float
    tone_levels: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Distances between the sides in a named feature space.

    `pair_share` is the mean distance within pairs over that between images of different pairs.
    """

    space: str
    mmd_squared: float
    mmd_p: float
    wasserstein: float
    frechet: float
    pair_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentReport:
    """What was measured of a data set; `refusals` is empty when it may be trained on.

    By side: `formats` and `sources` count images, `sizes` are the least, median and greatest length
    of the shorter side in pixels.
    """

    reals: int
    generated: int
    formats: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    sizes: dict[str, tuple[int, int, int]]
    probes: dict[str, Probe]
    pairs: PairDifferences | None
    distances: Distances | None
    unreadable: tuple[str, ...]
    limits: AuditLimits
    refusals: tuple[str, ...]

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
            "| probe on | AUC | 95 % interval | limit |",
            "| --- | --- | --- | --- |",
        ]
        for name, probe in self.probes.items():
            limit = "" if name == "all" else f"{self.limits.of(name):.2f}"
            row = f"| {name} | {probe.auc:.3f} | {probe.low:.3f} to {probe.high:.3f} | {limit} |"
            lines.append(row)
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
    pairs = _Pairs()
    for file in files:
        try:
            found = read_shortcut_features(file)
        except Unreadable:
            unreadable.append(file.name)
            continue
        if features is not None:
            vectors.append(features([found.pixels])[0])
        pairs.add(file, found)
        # Pixels are needed for pairing only: a data set does not fit into memory.
        read.append((file, ShortcutFeatures(found.groups, found.pixels[:0], found.kind)))
    labels = np.array([file.generated for file, _ in read], dtype=bool)
    _require_both(labels)
    groups = [file.group for file, _ in read]
    probes = _probes([found for _, found in read], labels, groups, seed)
    measured = pairs.measured()
    distances = _distances(np.array(vectors), labels, groups, space) if vectors else None
    return AlignmentReport(
        reals=int((~labels).sum()),
        generated=int(labels.sum()),
        formats=_by_side((file.generated, found.kind) for file, found in read),
        sources=_by_side((file.generated, file.source) for file, _ in read),
        sizes=_sizes(read),
        probes=probes,
        pairs=measured,
        distances=distances,
        unreadable=tuple(unreadable),
        limits=limits,
        refusals=tuple(_refusals(probes, measured, limits)),
    )


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


class _Pairs:
    """Lays the sides of each pair over each other as soon as both have been read."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[bool, NDArray[np.uint8]]] = {}
        self._drifts: list[PairDifference] = []
        self._resized = 0

    def add(self, file: SourceFile, found: ShortcutFeatures) -> None:
        """Take one side; a group of more than one real and one generated image is no pair."""
        other = self._waiting.pop(file.group, None)
        if other is None or other[0] == file.generated:
            self._waiting[file.group] = (file.generated, found.pixels)
            return
        real, generated = (other[1], found.pixels) if file.generated else (found.pixels, other[1])
        if real.shape != generated.shape:
            self._resized += 1
        else:
            self._drifts.append(measure_pair_difference(real, generated))

    def measured(self) -> PairDifferences | None:
        """Return the medians, or None without pairs."""
        total = self._resized + len(self._drifts)
        if not total:
            return None
        shifts = np.array([one.shift for one in self._drifts] or [(0.0, 0.0)])
        tones = np.array([one.tone for one in self._drifts] or [(0.0,)])
        return PairDifferences(
            pairs=total,
            resized=self._resized,
            shift_px=float(np.abs(np.median(shifts, axis=0)).max()),
            tone_levels=float(np.abs(np.median(tones, axis=0)).max()),
        )


def _require_both(labels: NDArray[np.bool_]) -> None:
    for name, count in (("real", int((~labels).sum())), ("generated", int(labels.sum()))):
        if count < MIN_SIDE_IMAGES:
            raise SettingsError(
                f"the data set has {count} readable {name} images: an audit needs at least"
                f" {MIN_SIDE_IMAGES} of either side"
            )


def _probes(
    found: Sequence[ShortcutFeatures], labels: NDArray[np.bool_], groups: Sequence[str], seed: int
) -> dict[str, Probe]:
    names = list(found[0].groups)
    columns = {name: np.array([one.groups[name] for one in found]) for name in names}
    columns["all"] = np.concatenate([columns[name] for name in names], axis=1)
    return {name: _probe(values, labels, groups, seed) for name, values in columns.items()}


def _probe(
    values: NDArray[np.float64], labels: NDArray[np.bool_], groups: Sequence[str], seed: int
) -> Probe:
    scores = np.full(len(labels), 0.5)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for training, held in folds.split(values, labels, groups):
        if labels[training].all() or not labels[training].any():
            continue
        forest = ExtraTreesClassifier(TREES, min_samples_leaf=2, random_state=seed)
        forest.fit(values[training], labels[training])
        scores[held] = forest.predict_proba(values[held])[:, 1]
    # Groups, not images, are drawn: the sides of a pair are not independent.
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    rows = [np.array(indices) for indices in members.values()]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(BOOTSTRAPS):
        picked = np.concatenate([rows[index] for index in rng.integers(len(rows), size=len(rows))])
        if labels[picked].any() and not labels[picked].all():
            drawn.append(_auc(labels[picked], scores[picked]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Probe(auc=_auc(labels, scores), low=float(low), high=float(high))


def _auc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve as the Mann-Whitney statistic: fast enough to be bootstrapped."""
    ranks = rankdata(scores)[labels]
    positives, total = len(ranks), len(labels)
    return float((ranks.mean() - (positives + 1) / 2) / (total - positives))


def _distances(
    vectors: NDArray[np.float64],
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    space: str,
) -> Distances:
    real, generated = vectors[~labels], vectors[labels]
    squared, p_value = maximum_mean_discrepancy(real, generated)
    return Distances(
        space=space,
        mmd_squared=squared,
        mmd_p=p_value,
        wasserstein=sliced_wasserstein(real, generated),
        frechet=frechet(real, generated),
        pair_share=_pair_share(vectors, labels, groups),
    )


def _pair_share(
    vectors: NDArray[np.float64], labels: NDArray[np.bool_], groups: Sequence[str]
) -> float | None:
    sides: dict[str, dict[bool, int]] = {}
    for index, (group, generated) in enumerate(zip(groups, labels.tolist(), strict=True)):
        sides.setdefault(group, {})[generated] = index
    pairs = np.array([(pair[False], pair[True]) for pair in sides.values() if len(pair) == 2])
    if len(pairs) < 2:
        return None
    real, generated = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    within = np.linalg.norm(real - generated, axis=1).mean()
    between = np.linalg.norm(real - np.roll(generated, 1, axis=0), axis=1).mean()
    return float(within / between) if between else None


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


def _refusals(
    probes: dict[str, Probe], pairs: PairDifferences | None, limits: AuditLimits
) -> Iterable[str]:
    for name, probe in sorted(probes.items(), key=lambda item: -item[1].low):
        if name != "all" and probe.low > limits.of(name):
            yield (
                f"{name} betrays the side: a probe on it alone reaches AUC {probe.auc:.3f}"
                f" ({probe.low:.3f} to {probe.high:.3f}), over the limit {limits.of(name):.2f}"
            )
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
