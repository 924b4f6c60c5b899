"""Figures of scored images, against scikit-learn and by hand."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from training.data.manifest import Entry
from training.evaluation.calibration import expected_calibration_error, reliability
from training.evaluation.scoring import BOOTSTRAPS, auc, auc_gain, harmonised, untouched

if TYPE_CHECKING:
    from pathlib import Path


def sample(reals: int, fakes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two branches' rounded logits, so that some tie, and which images are generated."""
    rng = np.random.default_rng(seed)
    generated = np.r_[np.zeros(reals, bool), np.ones(fakes, bool)]
    rng.shuffle(generated)
    first = np.round(rng.normal(generated * 1.0, 1.0), 1)
    second = np.round(first + rng.normal(0, 0.5, len(first)), 1)
    return first, second, generated


@pytest.mark.parametrize(("reals", "fakes"), [(60, 40), (7, 200), (1, 1)])
def test_auc_is_scikit_learns(reals: int, fakes: int) -> None:
    """The area equals scikit-learn's, ties included."""
    values, _, generated = sample(reals, fakes, 1)
    found = auc(values, generated)
    assert found.value == pytest.approx(roc_auc_score(generated, values))
    assert (found.reals, found.generated) == (reals, fakes)
    assert found.low <= found.value <= found.high


def test_auc_of_four_images_by_hand() -> None:
    """Fakes 3 and 1 against reals 2 and 1: wins 1, 1, 0 and a tie of a half make 2.5 of 4."""
    found = auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert found.value == pytest.approx(0.625)


def test_the_interval_is_that_of_an_explicit_bootstrap() -> None:
    """Drawing images and calling scikit-learn gives the same interval up to its own noise."""
    values, _, generated = sample(80, 60, 2)
    rng = np.random.default_rng(9)
    reals, fakes = np.flatnonzero(~generated), np.flatnonzero(generated)
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = np.r_[rng.choice(reals, len(reals)), rng.choice(fakes, len(fakes))]
        drawn.append(roc_auc_score(generated[rows], values[rows]))
    found = auc(values, generated)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_the_gain_is_paired() -> None:
    """The gain is the difference of areas; branches that move together leave it a narrow one."""
    first, second, generated = sample(80, 60, 3)
    found = auc_gain(first, second, generated)
    difference = roc_auc_score(generated, first) - roc_auc_score(generated, second)
    assert found.value == pytest.approx(difference)
    alone = auc(first, generated)
    assert found.high - found.low < alone.high - alone.low
    same = auc_gain(first, 2 * first + 5, generated)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_calibration_error_by_hand() -> None:
    """Two bins: stated 0.1, found 1/2, and stated 0.9, found 1, weigh 0.5 x 0.4 + 0.5 x 0.1."""
    probabilities = np.array([0.1, 0.1, 0.9, 0.9])
    generated = np.array([False, True, True, True])
    assert expected_calibration_error(probabilities, generated, bins=2) == pytest.approx(0.25)
    low, high = reliability(probabilities, generated, np.array([3.0, 1.0, 4.0, 0.0]), bins=2)
    assert (low.stated, low.found, low.mass) == pytest.approx((0.1, 0.25, 0.5))
    assert (high.stated, high.found, high.mass) == pytest.approx((0.9, 1.0, 0.5))


def test_bins_agree_with_scikit_learn() -> None:
    """Stated and found shares are those of scikit-learn's calibration curve."""
    rng = np.random.default_rng(4)
    probabilities = rng.random(400)
    generated = rng.random(400) < probabilities
    found, stated = calibration_curve(generated, probabilities, n_bins=15)
    bins = reliability(probabilities, generated)
    assert [one.found for one in bins] == pytest.approx(found.tolist())
    assert [one.stated for one in bins] == pytest.approx(stated.tolist())


@pytest.mark.parametrize(
    ("label", "kind", "saved_again"),
    [("generated", "JPEG", False), ("generated", "PNG", True), ("real", "JPEG", True)],
)
def test_every_image_arrives_by_the_same_codec(
    tmp_path: Path, label: str, kind: str, *, saved_again: bool
) -> None:
    """All but a generator's own JPEG is saved once as most generated files are: 75, 4:2:0."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    file = tmp_path / "image"
    Image.fromarray(noise).save(file, kind, quality=95)
    entry = Entry(path=file, label=label, set="s", family="", group="g")
    stored = np.asarray(Image.open(file))
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "JPEG", quality=75, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer)) if saved_again else stored
    np.testing.assert_array_equal(harmonised(entry), expected)
    np.testing.assert_array_equal(untouched(entry), stored)
