"""Robustness tiers: sizes, codecs and determinism."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.evaluation.robustness_tiers import TIERS, limit_side, resize

PICTURE = np.kron(
    np.random.default_rng(0).integers(0, 256, (60, 100, 3)), np.ones((16, 16, 1))
).astype(np.uint8)


@pytest.mark.parametrize(
    ("tier", "shape"),
    [
        ("clean", (960, 1600)),
        ("web", (461, 768)),
        ("hard", (307, 512)),
        ("jpeg85", (960, 1600)),
        ("webp80", (960, 1600)),
        ("screenshot", (816, 1360)),
        ("resize0.5", (480, 800)),
        ("resize0.75", (720, 1200)),
        ("resize1.5", (1440, 2400)),
        ("resize2", (1920, 3200)),
    ],
)
def test_each_tier_has_its_size(tier: str, shape: tuple[int, int]) -> None:
    """Pixels in and out are RGB uint8 of the stated size, the same every time."""
    found = TIERS[tier](PICTURE)
    assert found.shape == (*shape, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, TIERS[tier](PICTURE.copy()))


@pytest.mark.parametrize(
    ("tier", "longest", "quality"), [("web", 768, 60), ("hard", 512, 40), ("jpeg85", 1600, 85)]
)
def test_web_hard_and_a_resave_are_a_resize_and_a_jpeg(
    tier: str, longest: int, quality: int
) -> None:
    """They equal Pillow's own thumbnailing and saving at the stated side and quality."""
    scale = longest / 1600
    size = (longest, round(960 * scale))
    small = Image.fromarray(PICTURE).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    np.testing.assert_array_equal(TIERS[tier](PICTURE), np.asarray(Image.open(buffer)))


def test_small_images_are_not_enlarged_by_a_limit() -> None:
    """A side under the limit stays."""
    small = PICTURE[:100, :200]
    assert limit_side(small, 768) is small
    assert TIERS["clean"](small) is small


@given(height=st.integers(64, 200), width=st.integers(64, 200), tier=st.sampled_from(sorted(TIERS)))
@settings(max_examples=60, deadline=None)
def test_no_tier_leaves_an_image_too_small_to_score(height: int, width: int, tier: str) -> None:
    """Whatever the tier, 64 pixels a side remain."""
    assert min(TIERS[tier](PICTURE[:height, :width]).shape[:2]) >= 64


def test_resizing_keeps_the_aspect_ratio() -> None:
    """Both sides are scaled alike, even where the minimum stops the shrinking."""
    assert resize(PICTURE[:100, :300], 0.1).shape == (64, 192, 3)
