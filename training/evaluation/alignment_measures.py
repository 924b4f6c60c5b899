"""Measures of alignment: how far one group of nuisances tells the sides of a data set apart.

Each has a 95 % interval by a bootstrap that draws groups, not images: the sides of a pair are not
independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import entr
from scipy.stats import rankdata
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

from training.evaluation.distances import frechet_of_gaussians, median_kernel
from training.evaluation.scoring import Interval, draw_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

FOLDS = 5
TREES = 60
BOOTSTRAPS = 300
#: But for the probe, measures see at most so many images a side: a kernel is square.
MOST_IMAGES = 300
#: A feature is cut at its quantiles into at most so many bins, with this many images or more in
#: each cell of bin and side (Cochran, Biometrics 1954).
MOST_BINS, CELL_IMAGES = 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Cross-validated AUC of a classifier on one group of nuisances, with its 95 % interval."""

    auc: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The AUC, under the name that it has in an `Interval`."""
        return self.auc


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """How far one group of nuisances tells the sides apart; 0 is aligned, 0.5 for the probe.

    The features are scaled to a standard deviation of 1 over both sides. `mmd_squared` is the
    squared maximum mean discrepancy (at most 2), `frechet` the distance of Gaussians, and
    `information` the mutual information in nats (at most ln 2) of the side and the feature that
    tells most of it.
    """

    probe: Probe
    mmd_squared: Interval
    frechet: Interval
    information: Interval


def measure_alignment(
    values: Values, labels: NDArray[np.bool_], groups: Sequence[str], seed: int = 0
) -> Alignment:
    """Measure one group of nuisances (N, D); `labels` (N,) are the sides, images share `groups`."""
    found = probe(values, labels, groups, seed)
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    # In one random order of the groups for both sides, so that pairs stay together.
    order = rng.permutation(int(numbers.max()) + 1)[numbers]
    kept = np.concatenate(
        [
            side[np.argsort(order[side], kind="stable")[:MOST_IMAGES]]
            for side in (np.flatnonzero(~labels), np.flatnonzero(labels))
        ]
    )
    sides = _Sides(labels[kept], np.unique(numbers[kept], return_inverse=True)[1], rng)
    scaled = standardised(values[kept])
    if not scaled.size:
        same = sides.interval(np.zeros(len(sides.weights)))
        return Alignment(probe=found, mmd_squared=same, frechet=same, information=same)
    informed = [sides.interval(sides.information(column)) for column in scaled.T]
    return Alignment(
        probe=found,
        mmd_squared=sides.interval(sides.mmd_squared(scaled)),
        frechet=sides.interval(sides.frechet(scaled)),
        information=max(informed, key=lambda one: (one.value, one.low)),
    )


def standardised(values: Values) -> Values:
    """Scale each column of (N, D) to mean 0 and standard deviation 1; drop constant ones."""
    spread = values.std(axis=0)
    varies = spread > 1e-9 * (1 + np.abs(values).max(axis=0))
    scaled: Values = (values[:, varies] - values[:, varies].mean(axis=0)) / spread[varies]
    return scaled


class _Sides:
    """The images of two sides, and how often the bootstrap draws each of them.

    `weights` (1 + BOOTSTRAPS, N) has the images themselves in its first row. A measure returns its
    estimate under each row.
    """

    def __init__(
        self, labels: NDArray[np.bool_], numbers: NDArray[np.intp], rng: np.random.Generator
    ) -> None:
        drawn = draw_groups(numbers, rng, BOOTSTRAPS).astype(np.float64)
        # A draw without one of the sides says nothing.
        drawn = drawn[(drawn @ labels > 0) & (drawn @ ~labels > 0)]
        self.weights = np.vstack([np.ones(len(labels)), drawn])
        self._labels = labels
        self._apart = (numbers[:, None] != numbers).astype(np.float64)
        self._sides = (self.weights * ~labels, self.weights * labels)

    def interval(self, estimates: Values) -> Interval:
        """Return the bias-corrected estimate and the basic bootstrap interval, both at least 0.

        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 10; Davison and
        Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
        """
        drawn = estimates[1:]
        figures = 2 * estimates[0] - np.array([drawn.mean(), *np.quantile(drawn, [0.975, 0.025])])
        value, low, high = np.maximum(figures, 0).tolist()
        generated = int(self._labels.sum())
        return Interval(value, low, high, len(self._labels) - generated, generated)

    def mmd_squared(self, scaled: Values) -> Values:
        """Return the unbiased squared MMD (Gretton et al., JMLR 2012, eq. 3).

        Images of one group are not compared with each other, nor an image with its own copy.
        """
        kernel = median_kernel(scaled) * self._apart
        reals, fakes = self._sides

        def mean(first: Values, second: Values) -> Values:
            pairs = ((first @ self._apart) * second).sum(axis=1)
            total: Values = ((first @ kernel) * second).sum(axis=1) / np.maximum(pairs, 1)
            return total

        return mean(reals, reals) + mean(fakes, fakes) - 2 * mean(reals, fakes)

    def frechet(self, scaled: Values) -> Values:
        """Return the Fréchet distance of Gaussians (Dowson and Landau, 1982).

        With few images the covariances are drawn to their mean, as in regularised discriminant
        analysis (Friedman, JASA 1989), by the share of D features in D + N images.
        """
        size = scaled.shape[1]
        products = (scaled[:, :, None] * scaled[:, None]).reshape(-1, size * size)
        means, covariances = [], []
        for weights in self._sides:
            total = weights.sum(axis=1, keepdims=True)
            mean = weights @ scaled / total
            second = (weights @ products / total).reshape(-1, size, size)
            means.append(mean)
            covariances.append(second - mean[:, :, None] * mean[:, None])
        share = size / (size + len(scaled) / 2)
        pooled = sum(covariances) / 2
        one, other = ((1 - share) * own + share * pooled for own in covariances)
        return frechet_of_gaussians(means[0], one, means[1], other)

    def information(self, column: Values) -> Values:
        """Return the mutual information of one feature and the side, in nats, binned (plug-in).

        Its bias, (bins - 1) / 2N for independent images (Miller, 1955), is what the correction of
        `interval` takes off; that of pairs is less.
        """
        bins = int(np.clip(len(column) / 2 / CELL_IMAGES, 2, MOST_BINS))
        levels = np.arange(1, bins) / bins
        # Edges are values of the feature, so that a flag falls into two bins whatever its share.
        edges = np.unique(np.quantile(column, levels, method="inverted_cdf"))
        member = np.eye(len(edges) + 1)[np.searchsorted(edges, column)]
        cells = np.stack([weights @ member for weights in self._sides], axis=1)
        cells /= cells.sum(axis=(1, 2), keepdims=True)
        of_side, of_bin = entr(cells.sum(axis=2)).sum(axis=1), entr(cells.sum(axis=1)).sum(axis=1)
        joint: Values = of_side + of_bin - entr(cells).sum(axis=(1, 2))
        return joint


def probe(values: Values, labels: NDArray[np.bool_], groups: Sequence[str], seed: int = 0) -> Probe:
    """Cross-validate a forest on nuisances (N, D), groups kept together, and bootstrap its AUC."""
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
