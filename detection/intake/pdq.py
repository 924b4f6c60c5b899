"""PDQ, Meta's perceptual hash for photographs, in numpy.

The algorithm is that of "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm"
(Meta, 2019): luma, two passes of a box filter along each axis, 64x64 samples, the 16x16 lowest
non-constant DCT coefficients, one bit each for "above the median". Box filters and sampling are
linear and separable, so that they are folded here into one (64, n) matrix an axis.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

HASH_BYTES = 32
_GRID = 64
_COEFFICIENTS = 16
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# A longer axis is first averaged over whole blocks down to under twice this; the hash's own windows
# are wider than such a block, so that few bits ever move.
_LENGTH = 512


def pdq(pixels: NDArray[np.uint8]) -> tuple[bytes, int]:
    """Hash RGB pixels, uint8 (H, W, 3): the 32 bytes (highest coefficient first) and the quality.

    Quality, 0 to 100, measures gradients: an image under about 50 is so flat that its hash says
    little.
    """
    rows, columns = (max(1, length // _LENGTH) for length in pixels.shape[:2])
    if rows > 1 or columns > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce((columns, rows)))
    luma = pixels @ _LUMA
    height, width = luma.shape
    grid = _smoothing(height) @ luma @ _smoothing(width).T
    transform = _cosines()
    coefficients = (transform @ grid @ transform.T).ravel()
    # The lower of the two middle values, as the reference's median of an even count is.
    median = np.partition(coefficients, coefficients.size // 2 - 1)[coefficients.size // 2 - 1]
    bits = coefficients > median
    return np.packbits(bits[::-1]).tobytes(), _quality(grid)


def hamming(a: bytes, b: bytes) -> int:
    """Count the bits, 0 to 256, in which two hashes differ; up to about 31 is a near duplicate."""
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def _quality(grid: NDArray[np.float32]) -> int:
    steps = (np.diff(grid, axis=0), np.diff(grid, axis=1))
    percent = sum(int(np.abs(np.trunc(step * (100 / 255))).sum()) for step in steps)
    return min(100, percent // 90)


@lru_cache(maxsize=64)
def _smoothing(length: int) -> NDArray[np.float32]:
    """Weights (64, length) that filter one axis twice and sample it."""
    window = -(-length // (2 * _GRID))
    ahead = (window + 2) // 2
    behind = window - ahead

    def covered(centre: int) -> slice:
        return slice(max(0, centre - behind), min(length, centre + ahead))

    weights = np.zeros((_GRID, length), dtype=np.float32)
    for row in range(_GRID):
        outer = covered(int((row + 0.5) * length / _GRID))
        for centre in range(outer.start, outer.stop):
            inner = covered(centre)
            share = 1 / ((outer.stop - outer.start) * (inner.stop - inner.start))
            weights[row, inner] += share
    weights.flags.writeable = False
    return weights


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """Rows 1 to 16 of the orthonormal 64-point DCT-II."""
    order = np.arange(1, _COEFFICIENTS + 1)[:, None]
    position = 2 * np.arange(_GRID)[None, :] + 1
    rows = np.sqrt(2 / _GRID) * np.cos(np.pi / (2 * _GRID) * order * position)
    cosines: NDArray[np.float32] = rows.astype(np.float32)
    return cosines
