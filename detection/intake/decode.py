"""Decodes untrusted bytes to one upright sRGB image, or raises `ImageRejected` with a reason.

Checks come cheapest first: length, checksum, first bytes, claims, container, header, pixels. Each
decoder is called by name, so that no other plugin of Pillow can be reached, and Pillow's global
settings stay as they are.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detection.intake.colour import to_srgb, upright
from detection.intake.container_limits import ContainerLimits
from detection.intake.containers import SUPPORTED, identify, survey
from detection.intake.declared_type import check_declared_type
from detection.intake.errors import (
    ChecksumMismatch,
    Corrupt,
    DecompressionBomb,
    EmptyFile,
    ImageRejected,
    NotAnImage,
    TooManyBytes,
    TooManyPixels,
    TooSmall,
    Truncated,
    UnsupportedFormat,
)
from detection.intake.pdq import pdq
from detection.intake.pillow_plugins import OPENERS, mended
from detection.intake.tiff_ifd import orientation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Beyond the limit on pixels, a file with more of them than this to the byte was made to burst its
# reader: photographs stay under ten.
_BOMB_PIXELS_PER_BYTE = 100


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
    which `pixels` is the first (a JPEG counts as one, whatever lies behind it). `sha256` (hex) and
    `size_bytes` are those of the file's bytes; `pdq` is the 32-byte PDQ hash and `pdq_quality` its
    quality, 0 to 100.
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
    the digest (hex) that the producer gave. What is None claims nothing. Raises only subclasses of
    `ImageRejected`, for any bytes. Silences warnings meanwhile, which is
    process-wide state: decode in processes rather than in threads of one.
    """
    digest = _check_bytes(data, limits, sha256)
    kind = identify(data)
    if kind is None:
        message = "The bytes are not an image of any kind we know."
        raise NotAnImage(message)
    if kind not in SUPPORTED:
        message = f"The file is {kind}, which is not checked; see the list of supported formats."
        raise UnsupportedFormat(message)
    check_declared_type(kind, declared_type=declared_type, key=key)
    with _refusing(kind):
        pixels, frames = _decode_first_frame(kind, data, limits)
    fingerprint, quality = pdq(pixels)
    height, width, _ = pixels.shape
    return DecodedImage(
        pixels=pixels,
        format=kind,
        width=width,
        height=height,
        frames=frames,
        sha256=digest,
        size_bytes=len(data),
        pdq=fingerprint,
        pdq_quality=quality,
    )


def _check_bytes(data: bytes, limits: IntakeLimits, claimed: str | None) -> str:
    if not data:
        raise EmptyFile
    if len(data) > limits.max_bytes:
        message = f"The file has {len(data)} bytes; the limit (max_bytes) is {limits.max_bytes}."
        raise TooManyBytes(message)
    digest = hashlib.sha256(data).hexdigest()
    if claimed is not None and claimed.strip().lower() != digest:
        message = f"The producer gave sha256 {claimed[:64]!r}, but the bytes have {digest}."
        raise ChecksumMismatch(message)
    return digest


def _decode_first_frame(
    kind: str, data: bytes, limits: IntakeLimits
) -> tuple[NDArray[np.uint8], int]:
    bounds = ContainerLimits(
        max_frames=limits.max_frames,
        max_metadata_bytes=limits.max_metadata_bytes,
        max_pixels=limits.max_pixels,
    )
    found = survey(kind, data, bounds)
    if found.size is not None:
        _check_size(found.size, len(data), limits)
    picture = data if found.picture is None else found.picture
    with OPENERS[kind](io.BytesIO(picture)) as image:
        frames = max(found.frames, int(getattr(image, "n_frames", 1)) if kind in _COUNTED else 1)
        bounds.check_frames(frames)
        if found.page:
            image.seek(found.page)
        # The header as the decoder read it decides what is allocated, so it is checked as well.
        _check_size(image.size, len(data), limits)
        image.load()
        _check_size(image.size, len(data), limits)
        exif = found.exif
        if kind == "AVIF":
            # Pillow turns the container's own rotation into an orientation tag.
            exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        shown = to_srgb(mended(image), icc=found.icc, colours=found.colours)
        pixels = np.array(upright(shown, orientation(exif)))
    return pixels, frames


def _check_size(size: tuple[int, int], size_bytes: int, limits: IntakeLimits) -> None:
    width, height = size
    pixels = width * height
    if pixels > limits.max_pixels:
        claim = (
            f"{width} x {height} pixels in {size_bytes} bytes; "
            f"the limit (max_pixels) is {limits.max_pixels} pixels."
        )
        if pixels > _BOMB_PIXELS_PER_BYTE * size_bytes:
            message = f"The file unpacks to far more than a photograph of its size: {claim}"
            raise DecompressionBomb(message)
        message = f"The image has {claim}"
        raise TooManyPixels(message)
    if min(width, height) < limits.min_side:
        message = (
            f"The image is {width} x {height} pixels; "
            f"the detector needs {limits.min_side} on each side."
        )
        raise TooSmall(message)


@contextmanager
def _refusing(kind: str) -> Iterator[None]:
    """Turn whatever a decoder throws at hostile bytes into a refusal."""
    try:
        # A hostile file can make Pillow warn thousands of times; what matters ends as an error.
        with warnings.catch_warnings(action="ignore"):
            yield
    except ImageRejected:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        message = f"Decoding the {kind} file needs more memory than a decoder is given."
        raise DecompressionBomb(message) from error
    except Exception as error:
        # Pillow's decoders raise nearly every built-in exception; their texts tell them apart.
        text = str(error)
        if any(word in text.lower() for word in _TRUNCATION_WORDS):
            message = f"The {kind} file ends before its image does."
            raise Truncated(message) from error
        if "too large" in text or "Too much memory" in text:
            message = f"The {kind} file's metadata unpacks to far more than its size."
            raise DecompressionBomb(message) from error
        if any(word in text for word in _UNSUPPORTED_WORDS):
            message = f"The {kind} file has a layout that is not checked ({text[:200]})."
            raise UnsupportedFormat(message) from error
        message = f"The {kind} file's contents cannot be decoded ({text[:200]})."
        raise Corrupt(message) from error


_TRUNCATION_WORDS = (
    "truncated",
    "incomplete",
    "end of file",
    "not enough data",
    "unexpected end",
)


# What Pillow says of a whole file of a layout that it does not read.
_UNSUPPORTED_WORDS = (
    "unknown pixel mode",
    "unknown data organization",
    "Unsupported BMP",
    "not yet supported",
)


# Kinds whose frames the decoder's header pass counts without decoding any.
_COUNTED = {"AVIF", "HEIF", "WEBP"}
