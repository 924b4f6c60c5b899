"""Robustness tiers: the re-encodings under which every evaluation is repeated.

`clean` is the upload as it is (its codec harmonised by the caller), `web` and `hard` are what
platforms do to pictures, the rest isolate one cause each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.data.codecs import Codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Tier = Callable[[Pixels], Pixels]


def resize(image: Pixels, scale: float) -> Pixels:
    """Resample RGB uint8 (H, W, 3) bicubically by `scale`, to 64 pixels a side or more."""
    scale = max(scale, 64 / min(image.shape[:2]))
    height, width = (max(64, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def limit_side(image: Pixels, longest: int) -> Pixels:
    """Scale down so that the longer side is at most `longest` pixels."""
    return resize(image, min(1.0, longest / max(image.shape[:2])))


def clean(image: Pixels) -> Pixels:
    """Leave the image as it is."""
    return image


def web(image: Pixels) -> Pixels:
    """At most 768 pixels, JPEG quality 60: what a social network serves."""
    return Codec("JPEG", 60).apply(limit_side(image, 768))


def hard(image: Pixels) -> Pixels:
    """At most 512 pixels, JPEG quality 40: a thumbnail passed on."""
    return Codec("JPEG", 40).apply(limit_side(image, 512))


def jpeg85(image: Pixels) -> Pixels:
    """JPEG quality 85 at the same size: saved once more."""
    return Codec("JPEG", 85).apply(image)


def webp(image: Pixels) -> Pixels:
    """WebP quality 80 at the same size."""
    return Codec("WEBP", 80).apply(image)


def screenshot(image: Pixels) -> Pixels:
    """Resampled to 85 % and kept lossless, as a screen capture would."""
    return resize(image, 0.85)


def _scaled(scale: float) -> Tier:
    def tier(image: Pixels) -> Pixels:
        return resize(image, scale)

    return tier


TIERS: dict[str, Tier] = {
    "clean": clean,
    "web": web,
    "hard": hard,
    "jpeg85": jpeg85,
    "webp80": webp,
    "screenshot": screenshot,
    **{f"resize{scale:g}": _scaled(scale) for scale in (0.5, 0.75, 1.5, 2.0)},
}
