"""Original files and how to save a reconstruction just like one of them.

A pair must not differ by its files: a JPEG's partner gets the same quantisation tables, chroma
layout and scan, anything else is kept losslessly on both sides, unless both are saved again by a
codec that is drawn for the pair. Metadata is dropped from both; a
JPEG's coded picture is not touched by that.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from detection.errors import PermanentError
from detection.intake.errors import ImageRejected
from training.data.codecs import WEBP_MAX_SIDE, Codec, draw_codec
from training.data.manifest import REAL
from training.data.samples import as_served

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_START, _SCAN, _COMMENT = 0xD8, 0xDA, 0xFE
#: JFIF (density) and Adobe (colour transform): without them a decoder may read other colours.
_KEPT_SEGMENTS = frozenset({0xE0, 0xEE})


class Unreadable(PermanentError):
    """The file cannot be decoded."""

    reason = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How a side is saved: as PNG without tables, else as JPEG with these."""

    tables: Mapping[int, Sequence[int]] | None = None
    subsampling: int = -1
    progressive: bool = False

    @property
    def suffix(self) -> str:
        """File name ending."""
        return "png" if self.tables is None else "jpg"

    def encode(self, pixels: Pixels) -> bytes:
        """Encode RGB uint8 (H, W, 3)."""
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        if self.tables is None:
            image.save(buffer, "PNG")
        else:
            image.save(
                buffer,
                "JPEG",
                qtables=dict(self.tables),
                subsampling=self.subsampling,
                progressive=self.progressive,
            )
        return buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """One labelled image: its key for ever, where it belongs, its pixels and its file's coding.

    `key` holds letters, digits, `-` and `_`; `data` is the image as it is stored; `split` is what a
    data set uses it for; `weight` says how many images it stands for in calibration, and `audited`
    whether it is there because a random audit drew it from what the champion let through.
    """

    key: str
    group: str
    source: str
    label: str = REAL
    split: str = "training"
    weight: float = 1.0
    audited: bool = False
    pixels: Pixels
    coding: Coding | Codec
    data: bytes

    def recoded(self) -> Original:
        """Return it saved again, by a codec that its key alone draws, as its partners will be."""
        codec = draw_codec(self.key)
        if max(self.pixels.shape) > WEBP_MAX_SIDE:
            codec = replace(codec, kind="JPEG")
        return replace(self, coding=codec, data=codec.encode(self.pixels))


def read_original(
    data: bytes,
    *,
    key: str,
    group: str,
    source: str,
    label: str = REAL,
    split: str = "training",
    weight: float = 1.0,
    audited: bool = False,
) -> Original:
    """Decode an image; raises `Unreadable` naming its key."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            coding = _coding(image)
            # What is kept losslessly is what the service scored; a JPEG's coded picture stays.
            pixels = as_served(data)[0] if coding.tables is None else np.array(image.convert("RGB"))
        stored = coding.encode(pixels) if coding.tables is None else without_metadata(data)
    except (
        OSError,
        UnidentifiedImageError,
        ValueError,
        IndexError,
        Image.DecompressionBombError,
        ImageRejected,
    ) as error:
        raise Unreadable(f"{key} cannot be decoded: {error}") from error
    return Original(
        key=key,
        group=group,
        source=source,
        label=label,
        split=split,
        weight=weight,
        audited=audited,
        pixels=pixels,
        coding=coding,
        data=stored,
    )


def lossless(pixels: Pixels, *, key: str, group: str, source: str) -> Original:
    """Make an original of pixels that have no file, for example of a rendering."""
    coding = Coding()
    return Original(
        key=key,
        group=group,
        source=source,
        pixels=pixels,
        coding=coding,
        data=coding.encode(pixels),
    )


def _coding(image: Image.Image) -> Coding:
    if image.format != "JPEG" or image.mode != "RGB":
        return Coding()
    sampling = JpegImagePlugin.get_sampling(image)
    if sampling < 0:
        return Coding()  # a chroma layout that cannot be reproduced is kept losslessly
    return Coding(
        tables={number: tuple(table) for number, table in image.quantization.items()},  # type: ignore[attr-defined]  # a JPEG's own
        subsampling=sampling,
        progressive=bool(image.info.get("progressive")),
    )


def without_metadata(data: bytes) -> bytes:
    """Drop EXIF, colour profile and comments of a JPEG; raises `ValueError` for a broken one."""
    if data[:2] != bytes((0xFF, _START)):
        raise ValueError("no JPEG")
    kept, at = bytearray(data[:2]), 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("a marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return bytes(kept) + data[at:]
        application = 0xE0 <= marker <= 0xEF and marker not in _KEPT_SEGMENTS
        if not application and marker != _COMMENT:
            kept += data[at:end]
        at = end
