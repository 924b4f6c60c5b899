"""The figures of drift, against hand-worked numbers and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from worker.models.score_drift import (
    KS_SIGNIFICANCE,
    kolmogorov_smirnov,
    kolmogorov_smirnov_limit,
    population_stability_index,
)


def test_psi_of_a_hand_worked_pair() -> None:
    """Two bins: shares of 0.5 and 0.5 become 0.1 and 0.9, half a count being added to each."""
    reference, recent = np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4)
    expected = (0.1 - 0.5) * math.log(0.1 / 0.5) + (0.9 - 0.5) * math.log(0.9 / 0.5)
    assert population_stability_index(reference, recent, bins=2) == pytest.approx(expected)


def test_psi_is_the_symmetric_divergence_of_the_bins() -> None:
    """Scipy's relative entropies of the same histograms, both ways, add up to it."""
    rng = np.random.default_rng(1)
    reference, recent = rng.beta(2, 5, 900), rng.beta(3, 4, 700)
    edges = [-np.inf, *np.quantile(reference, np.arange(1, 10) / 10), np.inf]
    q, p = (
        (np.histogram(sample, edges)[0] + 0.5) / (len(sample) + 5) for sample in (reference, recent)
    )
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert population_stability_index(reference, recent) == pytest.approx(expected)


def test_psi_survives_scores_that_are_all_alike() -> None:
    """One value everywhere is one bin's worth of reference; the same again is no drift."""
    alike = np.full(300, 0.25)
    assert population_stability_index(alike, alike) == pytest.approx(0, abs=1e-12)
    assert population_stability_index(alike, np.full(300, 0.75)) > 1


@pytest.mark.parametrize("decimals", [1, 12])  # with many ties, and with none
def test_ks_is_scipys(decimals: int) -> None:
    """The distance of the two distribution functions, ties included."""
    rng = np.random.default_rng(2)
    reference = rng.beta(2, 5, 400).round(decimals)
    recent = rng.beta(2, 4, 250).round(decimals)
    expected = stats.ks_2samp(reference, recent).statistic
    assert kolmogorov_smirnov(reference, recent) == pytest.approx(expected)


def test_the_limit_of_ks_is_passed_as_rarely_as_it_says() -> None:
    """Kolmogorov's distribution, summed in full, gives the stated significance at the limit."""
    limit = kolmogorov_smirnov_limit(2000, 300)
    scaled = limit * math.sqrt(2000 * 300 / 2300)
    assert special.kolmogorov(scaled) == pytest.approx(KS_SIGNIFICANCE, rel=1e-3)


def test_chance_alone_is_no_drift() -> None:
    """The smallest window that is judged stays below the default limit, a hundred times over."""
    rng = np.random.default_rng(3)
    found = [
        population_stability_index(rng.beta(2, 5, 2000), rng.beta(2, 5, 200)) for _ in range(100)
    ]
    assert max(found) < 0.25
