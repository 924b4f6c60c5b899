"""Untrusted bytes to one upright sRGB image, or a `detection.refusals.Refusal` that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.refusals import NotAnImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeLimits:
    """Bounds on what one upload may cost; `min_side` is the detector's minimum in pixels."""

    max_bytes: int
    max_pixels: int
    max_frames: int
    max_metadata_bytes: int
    min_side: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """One image ready to be scored.

    `pixels` is uint8 (height, width, 3), C-contiguous, upright, sRGB. `format` is one of "JPEG",
    "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "HEIF"; `frames` is how many the file holds, of
    which `pixels` is the first. `sha256` (hex) and `size_bytes` are those of the file's bytes;
    `pdq` is the 32-byte PDQ hash and `pdq_quality` its quality, 0 to 100.
    """

    pixels: NDArray[np.uint8]
    format: str
    width: int
    height: int
    frames: int
    sha256: str
    size_bytes: int
    pdq: bytes
    pdq_quality: int


def decode(
    data: bytes,
    *,
    limits: IntakeLimits,
    declared_type: str | None = None,
    key: str | None = None,
    sha256: str | None = None,
) -> DecodedImage:
    """Decode the first frame of `data`.

    `declared_type` is the content type and `key` the object key that came with the bytes; `sha256`
    the digest (hex) that the producer gave. What is None claims nothing. Raises only
    `detection.refusals.Refusal` subclasses, for any bytes.
    """
    raise NotAnImage
