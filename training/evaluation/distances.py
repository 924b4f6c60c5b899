"""Distances between two sets of feature vectors, each float64 (N, D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vectors = NDArray[np.float64]

PROJECTIONS = 128
PERMUTATIONS = 200


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


def measure_distances(
    vectors: NDArray[np.float64],
    labels: NDArray[np.bool_],
    groups: Sequence[str],
    space: str,
) -> Distances:
    """Measure vectors (N, D) of two sides (N,) in the feature space called `space`."""
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


def maximum_mean_discrepancy(
    first: Vectors, second: Vectors, *, seed: int = 0
) -> tuple[float, float]:
    """Squared MMD and the share of relabellings that exceed it (a p-value).

    The unbiased estimate of Gretton et al., JMLR 2012, eq. 3, with a Gaussian kernel whose width is
    the median distance of the joined sets.
    """
    joined = np.concatenate([first, second])
    kernel = median_kernel(joined)
    found = _unbiased(kernel, np.arange(len(joined)), len(first))
    rng = np.random.default_rng(seed)
    drawn = [
        _unbiased(kernel, rng.permutation(len(joined)), len(first)) for _ in range(PERMUTATIONS)
    ]
    return found, (1 + sum(value >= found for value in drawn)) / (1 + PERMUTATIONS)


def median_kernel(vectors: Vectors) -> Vectors:
    """Gaussian kernel (N, N) whose width is the median distance of the vectors (N, D)."""
    squared = cdist(vectors, vectors, "sqeuclidean")
    kernel: Vectors = np.exp(-squared / (np.median(squared[squared > 0]) if squared.any() else 1.0))
    return kernel


def _unbiased(kernel: Vectors, order: NDArray[np.int_], count: int) -> float:
    one, other = order[:count], order[count:]
    within = 0.0
    for side in (one, other):
        block = kernel[np.ix_(side, side)]
        within += (block.sum() - np.trace(block)) / (len(side) * (len(side) - 1))
    return float(within - 2 * kernel[np.ix_(one, other)].mean())


def sliced_wasserstein(first: Vectors, second: Vectors, *, seed: int = 0) -> float:
    """Mean 1-Wasserstein distance over random directions (Bonneel et al., JMIV 2015)."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((first.shape[1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(256) + 0.5) / 256
    gaps = [np.quantile(side @ directions, levels, axis=0) for side in (first, second)]
    return float(np.abs(gaps[0] - gaps[1]).mean())


def frechet(first: Vectors, second: Vectors) -> float:
    """Fréchet distance of Gaussians fitted to the sets."""
    means = [side.mean(axis=0) for side in (first, second)]
    one, other = (np.atleast_2d(np.cov(side, rowvar=False)) for side in (first, second))
    return float(frechet_of_gaussians(means[0], one, means[1], other))


def frechet_of_gaussians(first: Vectors, one: Vectors, second: Vectors, other: Vectors) -> Vectors:
    """Fréchet distance of Gaussians (Dowson and Landau, 1982): means (…, D), covariances (…, D, D).

    |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½), for each of the leading dimensions.
    """
    root = _square_root(one)
    crossed = np.clip(np.linalg.eigvalsh(root @ other @ root), 0, None)
    traces = np.trace(one + other, axis1=-2, axis2=-1) - 2 * np.sqrt(crossed).sum(axis=-1)
    distances: Vectors = np.maximum(0.0, ((first - second) ** 2).sum(axis=-1) + traces)
    return distances


def _square_root(matrix: Vectors) -> Vectors:
    values, vectors = np.linalg.eigh(matrix)
    root: Vectors = (vectors * np.sqrt(np.clip(values, 0, None))[..., None, :]) @ vectors.mT
    return root
