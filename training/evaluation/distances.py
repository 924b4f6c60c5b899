"""Distances between two sets of feature vectors, each float64 (N, D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float64]

PROJECTIONS = 128
PERMUTATIONS = 200


def maximum_mean_discrepancy(
    first: Vectors, second: Vectors, *, seed: int = 0
) -> tuple[float, float]:
    """Squared MMD and the share of relabellings that exceed it (a p-value).

    The unbiased estimate of Gretton et al., JMLR 2012, eq. 3, with a Gaussian kernel whose width is
    the median distance of the joined sets.
    """
    joined = np.concatenate([first, second])
    squared = cdist(joined, joined, "sqeuclidean")
    kernel = np.exp(-squared / (np.median(squared[squared > 0]) if squared.any() else 1.0))
    found = _unbiased(kernel, np.arange(len(joined)), len(first))
    rng = np.random.default_rng(seed)
    drawn = [
        _unbiased(kernel, rng.permutation(len(joined)), len(first)) for _ in range(PERMUTATIONS)
    ]
    return found, (1 + sum(value >= found for value in drawn)) / (1 + PERMUTATIONS)


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
    """Fréchet distance of Gaussians fitted to the sets (Dowson and Landau, 1982).

    |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)
    """
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, other = (np.atleast_2d(np.cov(side, rowvar=False)) for side in (first, second))
    root = _square_root(one)
    cross = _square_root(root @ other @ root)
    return max(0.0, float(shift @ shift + np.trace(one) + np.trace(other) - 2 * np.trace(cross)))


def _square_root(matrix: Vectors) -> Vectors:
    values, vectors = np.linalg.eigh(matrix)
    root: Vectors = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
