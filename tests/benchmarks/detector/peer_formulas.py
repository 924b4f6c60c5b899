"""Peers that need no network: what a file says, the slope of a spectrum, neighbouring pixels.

Each reads numbers from pictures; those that have a direction of their own give one number that is
higher for generated images, the others are fitted by the folds (`peer_table`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detection.intake.provenance import read_provenance
from training.evaluation.shortcut_features import luminance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Rows = NDArray[np.float32]

#: Side of the centre square that local peers read, in pixels; smaller pictures are enlarged to it.
SIDE = 256
#: Of the highest frequency: where the fit of the spectrum starts (Dzanic et al. fit the tail).
TAIL = 0.25
#: Bounds of the residual's histogram, in levels of 8 bits.
LEVELS = (0, 1, 2, 4, 8, 16, 32, 256)


def native_square(picture: Pixels) -> Pixels:
    """Cut the centre square of RGB uint8 (H, W, 3) at native resolution: uint8 (SIDE, SIDE, 3)."""
    height, width = picture.shape[:2]
    if (shorter := min(height, width)) < SIDE:
        size = (-(-width * SIDE // shorter), -(-height * SIDE // shorter))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        height, width = picture.shape[:2]
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return np.ascontiguousarray(picture[top : top + SIDE, left : left + SIDE])


def spectral_decay(pictures: Sequence[Pixels]) -> list[Rows]:
    """Read the decay of the power spectrum: slope and level (2,) of its tail, in logarithms.

    Power over radial frequency is fitted by a straight line in logarithms (Dzanic, Shah and
    Witherden, NeurIPS 2020, arXiv 1911.06465).
    """
    rows = []
    window = np.hanning(SIDE)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    rings = np.rint(frequency * SIDE).astype(int)
    inside = (rings > TAIL * SIDE / 2) & (rings <= SIDE // 2)
    counts = np.bincount(rings[inside])
    places = np.flatnonzero(counts)
    for picture in pictures:
        luma = luminance(native_square(picture))
        power = np.abs(np.fft.fft2((luma - luma.mean()) * np.outer(window, window))) ** 2
        radial = np.bincount(rings[inside], weights=power[inside])[places] / counts[places]
        slope, _ = np.polyfit(np.log(places), np.log(radial + 1e-9), 1)
        rows.append(np.array([slope, np.log(radial + 1e-9).mean()], dtype=np.float32))
    return rows


def neighbour_residuals(pictures: Sequence[Pixels]) -> list[Rows]:
    """Read the histogram of neighbouring pixel relationships, by place in a square of 2 x 2.

    The residual is the picture less its own halved and doubled copy by nearest neighbour (NPR, Tan
    et al., CVPR 2024, arXiv 2312.10461); the paper trains a ResNet-50 on it, here a regression is
    fitted to the histogram of its absolute values: shares (21,) of three places and seven ranges.
    """
    rows = []
    for picture in pictures:
        blocks = native_square(picture).astype(np.int16).reshape(SIDE // 2, 2, SIDE // 2, 2, 3)
        first = blocks[:, 0, :, 0]
        places = (blocks[:, 0, :, 1], blocks[:, 1, :, 0], blocks[:, 1, :, 1])
        counts = [np.histogram(np.abs(one - first), LEVELS)[0] for one in places]
        rows.append(np.concatenate(counts).astype(np.float32) / first.size)
    return rows


def declared(data: bytes) -> float:
    """Judge a file by what it says: 1 declares a model, -1 names a camera, 0 says neither.

    EXIF, XMP, PNG texts and C2PA are read as the service reads them.
    """
    record = read_provenance(data)
    if record.declares_ai:
        return 1.0
    return -1.0 if record.exif.make or record.exif.model else 0.0
