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

from detection.intake.animation import SLOTS, ShownFrame, longest, small_picture
from detection.intake.animation import sample as sample_frames
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
from detection.intake.formats.survey import Timeline
from detection.intake.pdq import pdq
from detection.intake.pillow_plugins import OPENERS, mended
from detection.intake.tiff_ifd import orientation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from detection.intake.formats.survey import Survey

# Beyond the limit on pixels, a file with more of them than this to the byte was made to burst its
# reader: photographs stay under ten.
_BOMB_PIXELS_PER_BYTE = 100
# All frames of an animation together may have this many times the pixels of one picture: every one
# is decoded, some twice, at 10 to 60 million pixels a second.
_MAX_ANIMATION = 2


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

    `sample` are the frames to be judged, one for a still; all are C-contiguous, upright, sRGB and
    of `width` x `height` pixels. `format` is one of "JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF",
    "BMP", "HEIF"; `frames` is how many the file holds (a JPEG counts as one, whatever lies behind
    it). `sha256` (hex) and `size_bytes` are those of the file's bytes; `pdq` is the 32-byte PDQ
    hash of `pixels` and `pdq_quality` its quality, 0 to 100.
    """

    sample: tuple[ShownFrame, ...]
    format: str
    width: int
    height: int
    frames: int
    sha256: str
    size_bytes: int
    pdq: bytes
    pdq_quality: int

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The picture, uint8 (height, width, 3); of an animation the frame shown longest."""
        return longest(self.sample).pixels

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Return the pixels of a frame of the sample by its number."""
        return next(frame.pixels for frame in self.sample if frame.number == number)


def decode(
    data: bytes,
    *,
    limits: IntakeLimits,
    declared_type: str | None = None,
    key: str | None = None,
    sha256: str | None = None,
) -> DecodedImage:
    """Decode the picture in `data`, or a sample of the frames of an animation.

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
        sample, frames = _decode_sample(kind, data, limits)
    pixels = longest(sample).pixels
    fingerprint, quality = pdq(pixels)
    height, width, _ = pixels.shape
    return DecodedImage(
        sample=sample,
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


def _decode_sample(
    kind: str, data: bytes, limits: IntakeLimits
) -> tuple[tuple[ShownFrame, ...], int]:
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
        # The header as the decoder read it decides what is allocated, so it is checked as well.
        _check_size(image.size, len(data), limits)
        timeline = _timeline(kind, image, found)
        chosen = [(found.page, 1.0)] if timeline is None else _choose(image, timeline, limits)
        sample = []
        for number, share in chosen:
            if timeline is not None:
                image.seek(timeline.first + number)
            elif number:
                image.seek(number)
            image.load()
            # Some decoders learn the size only with the pixels.
            _check_size(image.size, len(data), limits)
            sample.append(ShownFrame(number, share, _shown(kind, image, found)))
    if len({frame.pixels.shape for frame in sample}) > 1:
        message = f"The frames of the {kind} file differ in size."
        raise Corrupt(message)
    return tuple(sample), frames


def _timeline(kind: str, image: Image.Image, found: Survey) -> Timeline | None:
    """The frames' times; equal ones where an AVIF's tables do not fit what the decoder counts."""
    timeline = found.timeline
    if kind != "AVIF":
        return timeline
    count = int(getattr(image, "n_frames", 1))
    if timeline is not None and len(timeline.durations_ms) == count:
        return timeline
    return Timeline(durations_ms=(100.0,) * count) if count > 1 else None


def _choose(
    image: Image.Image, timeline: Timeline, limits: IntakeLimits
) -> list[tuple[int, float]]:
    canvas = image.width * image.height
    frames = timeline.first + len(timeline.durations_ms)
    if frames * canvas > _MAX_ANIMATION * limits.max_pixels:
        message = (
            f"The animation has {frames} frames of {image.width} x {image.height} pixels; the "
            f"limit is {_MAX_ANIMATION} times max_pixels ({limits.max_pixels}) in all."
        )
        raise TooManyPixels(message)

    def look(number: int) -> NDArray[np.float32]:
        image.seek(timeline.first + number)
        image.load()
        return small_picture(image)

    return sample_frames(timeline, min(SLOTS, max(1, limits.max_pixels // canvas)), look)


def _shown(kind: str, image: Image.Image, found: Survey) -> NDArray[np.uint8]:
    """The loaded frame as it is shown: upright, in sRGB, over white."""
    exif = found.exif
    if kind == "AVIF":
        # Pillow turns the container's own rotation into an orientation tag.
        exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    shown = to_srgb(mended(image), icc=found.icc, colours=found.colours)
    return np.array(upright(shown, orientation(exif)))


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
