"""`detection.intake.pdq` against the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from detection.intake.pdq import hamming, pdq

# Hashes by the pdqhash package 0.2.8 (Meta's C++ code) of the very same arrays.
REFERENCE = {
    "astronaut": "2d6b1af3a956c529e79ca3d2526fa834d4196c81cedd04de0a26b855fc99b724",
    "chelsea": "5feb5321f01da156898e2bf629a5d3438412cdbd23f48942464526315db33ffd",
    "coffee": "8c629e779a663698b9a33866c026726c21a679f61eb6e1f8c79ba7e23c8299e0",
    "rocket": "8792786c87937064bf1bc0e43f1fc0e03f1cc2e33da4c2537cec821b2ce4f376",
    "china.jpg": "bf18cef3407e8678e6833b1937d14066988e5cd2046eac5f783103f157abf50e",
    "flower.jpg": "673966dcb772a66499a69a666196a9476599a21b9649a659596624b3e58ea693",
}
# The astronaut enlarged to 4000 x 3000 (bicubic), hashed by the reference at full size.
REFERENCE_ENLARGED = "2d2f1af3a856c529679ca3d6526fa836d4196c81c6dd04de0a26f855fc99b724"


def photograph(name: str) -> np.ndarray:
    """A photograph that the scikit wheels carry, uint8 (H, W, 3)."""
    if name.endswith(".jpg"):
        return load_sample_image(name)
    return getattr(skimage.data, name)()


@pytest.mark.parametrize("name", REFERENCE)
def test_hash_equals_the_reference(name: str) -> None:
    """A photograph's hash is the reference implementation's, give or take one rounded bit."""
    digest, quality = pdq(photograph(name))
    assert hamming(digest, bytes.fromhex(REFERENCE[name])) <= 1
    assert quality == 100


def test_reduction_of_a_large_image_keeps_the_hash() -> None:
    """The averaging that keeps a 12-megapixel image fast moves at most a few of 256 bits."""
    large = np.asarray(Image.fromarray(photograph("astronaut")).resize((4000, 3000)))
    digest, _ = pdq(large)
    assert hamming(digest, bytes.fromhex(REFERENCE_ENLARGED)) <= 6


def test_hash_survives_recompression_and_separates_photographs() -> None:
    """Halving a photograph leaves it a near duplicate; another photograph is far away."""
    original = photograph("coffee")
    halved = np.asarray(Image.fromarray(original).resize((300, 200)))
    assert hamming(pdq(original)[0], pdq(halved)[0]) <= 31
    assert hamming(pdq(original)[0], pdq(photograph("rocket"))[0]) > 90


def test_flat_image_has_no_quality() -> None:
    """One colour has no gradients, and its quality says so."""
    digest, quality = pdq(np.full((100, 100, 3), 128, dtype=np.uint8))
    assert quality == 0
    assert len(digest) == 32


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 300_000), (300_000, 65), (127, 129)])
def test_every_shape_hashes(height: int, width: int) -> None:
    """Thin, small and odd shapes give 32 bytes and a quality in range."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    digest, quality = pdq(pixels)
    assert len(digest) == 32
    assert 0 <= quality <= 100


def test_hamming_counts_differing_bits() -> None:
    """The distance is the number of bits that differ."""
    assert hamming(b"\x00" * 32, b"\xff" * 32) == 256
    assert hamming(b"\x01" + b"\x00" * 31, b"\x80" + b"\x00" * 31) == 2
