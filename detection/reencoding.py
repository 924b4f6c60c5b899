"""Mild re-encodings that a picture meets on its way; a stable label survives them.

A label that holds for the upload but not for these copies rests on traces too faint to accuse
anybody with; `LabelPolicy.steady` turns it into `unsure`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

JPEG_QUALITY = 90
SCALE = 0.95


def mild_copies(image: NDArray[np.uint8], *, min_side: int) -> list[NDArray[np.uint8]]:
    """Save RGB uint8 (H, W, 3) as JPEG of quality 90, and shrink it to 95 %.

    Neither side of a copy goes under `min_side` pixels.
    """
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    size = (
        max(min_side, round(picture.width * SCALE)),
        max(min_side, round(picture.height * SCALE)),
    )
    shrunk = picture.resize(size, Image.Resampling.BICUBIC)
    return [np.asarray(Image.open(buffer)), np.asarray(shrunk)]
