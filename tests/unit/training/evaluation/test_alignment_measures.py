"""Alignment measures against closed forms, and their limits against chance and a codec."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.metrics import mutual_info_score

from training.data.codecs import Codec
from training.data.shaders import renderings
from training.evaluation.alignment_measures import Alignment, measure_alignment
from training.evaluation.distances import frechet_of_gaussians
from training.evaluation.shortcut_audit import AuditLimits
from training.evaluation.shortcut_features import SourceFile, read_shortcut_features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

IMAGES = 150


def measured(
    real: NDArray[np.float64], generated: NDArray[np.float64], *, paired: bool = False
) -> Alignment:
    """Measure two sides of features (N, D), each image or each pair a group."""
    labels = np.repeat([False, True], [len(real), len(generated)])
    numbers = np.r_[np.arange(len(real)), np.arange(len(generated)) + (0 if paired else len(real))]
    return measure_alignment(
        np.concatenate([real, generated]), labels, numbers.astype(str).tolist()
    )


def gaussian(*shape: int, seed: int) -> NDArray[np.float64]:
    """Independent standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def test_the_frechet_distance_is_that_of_known_gaussians() -> None:
    """It is |m1 - m2|² + Σ(s1 - s2)² for diagonal covariances, and by scipy's root for others."""
    one, other = np.diag([1.0, 4.0]), np.diag([9.0, 0.25])
    means = np.array([0.0, 0.0]), np.array([3.0, 1.0])

    assert frechet_of_gaussians(means[0], one, means[1], other) == pytest.approx(10 + 4 + 2.25)

    factors = gaussian(2, 3, 3, seed=1)
    first, second = factors @ factors.swapaxes(1, 2)
    expected = np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_of_gaussians(np.zeros(3), first, np.zeros(3), second) == pytest.approx(expected)


def test_a_shift_costs_its_square_in_frechet_and_its_closed_form_in_mmd() -> None:
    """Normal sides two deviations apart have the distances that integrals give, in the interval.

    Over both sides the deviation is √2, so that the scaled sides are √2 apart, of variance ½.
    """
    real, generated = gaussian(IMAGES, 1, seed=2), gaussian(IMAGES, 1, seed=3) + 2
    found = measured(real, generated)

    joined = np.concatenate([real, generated]) / math.sqrt(2)
    gaps = (joined - joined.T)[~np.eye(len(joined), dtype=bool)]
    width = float(np.median(gaps**2))
    # The mean of exp(-d²/w) over normal d of mean m and variance 1.
    within = (1 + 2 / width) ** -0.5
    squared = 2 * within * (1 - math.exp(-2 / (width + 2)))
    assert found.mmd_squared.low < squared < found.mmd_squared.high
    assert found.mmd_squared.value == pytest.approx(squared, rel=0.25)
    assert found.frechet.low < 2 < found.frechet.high
    assert found.frechet.value == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("paired", [False, True])
def test_equal_sides_are_nought_apart(*, paired: bool) -> None:
    """Two draws of one distribution, or of pairs that differ a little, have distances about 0."""
    real = gaussian(IMAGES, 2, seed=4)
    other = gaussian(IMAGES, 2, seed=5)
    found = measured(real, real + 0.01 * other if paired else other, paired=paired)

    for figure in (found.mmd_squared, found.frechet, found.information):
        assert figure.low == 0
        assert figure.value < 0.05


def test_information_is_nought_for_noise_and_ln_2_for_a_copy_of_the_side() -> None:
    """A feature that is the side itself says ln 2 nats of it; a constant one and noise say none."""
    noise = gaussian(2 * IMAGES, 1, seed=6)
    copy = np.repeat([0.0, 1.0], IMAGES)[:, None]
    both = np.concatenate([noise, copy], axis=1)

    assert measured(noise[:IMAGES], noise[IMAGES:]).information.value < 0.01
    assert measured(both[:IMAGES], both[IMAGES:], paired=True).information.value == pytest.approx(
        math.log(2)
    )
    assert measured(np.ones((20, 2)), np.ones((20, 2))).information.high == 0


def test_information_has_the_correction_of_miller_and_madow() -> None:
    """The value is scikit-learn's for eight quantile bins, less (8 - 1)(2 - 1) / 2N."""
    real, generated = gaussian(100, 1, seed=7), gaussian(100, 1, seed=8) + 1
    joined = np.concatenate([real, generated]).ravel()
    bins = np.argsort(np.argsort(joined)) // (len(joined) // 8)
    plain = mutual_info_score(np.repeat([0, 1], 100), bins)

    found = measured(real, generated).information

    assert found.value == pytest.approx(plain - 7 / 400, abs=0.006)
    assert found.low < plain - 7 / 400 < found.high


def png(pixels: Pixels) -> bytes:
    """Encode losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def nuisances(
    pictures: Sequence[Pixels], encode: Callable[[Pixels], bytes]
) -> dict[str, NDArray[np.float64]]:
    """The nuisances of pictures by group, each (N, D)."""
    found = [
        read_shortcut_features(
            SourceFile(name="", data=encode(pixels), generated=False, group="")
        ).groups
        for pixels in pictures
    ]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def shares(found: Alignment, group: str) -> list[float]:
    """The lower ends of the measures in shares of their limits, but for the probe's."""
    limits = AuditLimits().of(group)
    return [getattr(found, name).low / limits[name] for name in limits if name != "probe"]


def test_limits_lie_between_chance_and_a_codec() -> None:
    """Equally distributed sides stay under 0.6 of each limit; PNG against JPEG 60 is over 6 times.

    `AuditLimits` states both.
    """
    pictures = [pixels for _, pixels in renderings(120, side=64)]
    plain = nuisances(pictures, png)
    for count in (20, 60):
        for group, values in plain.items():
            found = measured(values[:count], values[60 : 60 + count])
            assert all(share < 0.6 for share in shares(found, group)), (group, found)

    coded = nuisances(pictures[60:], Codec("JPEG", 60).encode)
    for group in ("container", "tables"):
        found = measured(plain[group][:60], coded[group])
        assert all(share > 6 for share in shares(found, group)), (group, found)
