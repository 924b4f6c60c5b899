"""WebP (RFC 9649): canvas, frames and their times, metadata."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detection.intake.errors import Corrupt, Truncated
from detection.intake.formats.survey import Survey, Timeline

if TYPE_CHECKING:
    from detection.intake.container_limits import ContainerLimits


def survey_webp(data: bytes, bounds: ContainerLimits) -> Survey:
    """Walk the chunks."""
    (total,) = struct.unpack_from("<I", data, 4)
    picture = None
    if total + 8 == len(data) + 1:
        # Encoders pad chunks to even lengths, and some writers leave the last such byte out.
        data = picture = data + b"\0"
    if total + 8 > len(data):
        message = f"The WebP file says {total + 8} bytes and has {len(data)}."
        raise Truncated(message)
    at, pieces, repeats = 12, 0, True
    size: tuple[int, int] | None = None
    durations: list[float] = []
    exif = xmp = b""
    while at + 8 <= total + 8:
        name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        body = at + 8
        pieces += 1
        bounds.check_pieces(pieces)
        if name in {b"VP8X", b"VP8 ", b"VP8L"}:
            size = size or _size(name, data, body)
        elif name == b"ANIM":
            repeats = struct.unpack_from("<H", data, body + 4) == (0,)
        elif name == b"ANMF":
            durations.append(float(_u24(data, body + 12)))
            bounds.check_frames(len(durations))
        elif name == b"EXIF":
            exif = data[body : body + length].removeprefix(b"Exif\0\0")
        elif name in {b"XMP ", b"XMP\0"}:  # the second is how ImageMagick 6 writes it
            xmp = data[body : body + length]
        at = body + length + (length & 1)
    if size is None:
        message = "The WebP file holds no picture."
        raise Corrupt(message)
    timeline = Timeline(durations_ms=tuple(durations), repeats=repeats)
    return Survey(
        size=size,
        frames=max(1, len(durations)),
        exif=exif,
        xmp=xmp,
        picture=picture,
        timeline=timeline if len(durations) > 1 else None,
    )


def _size(name: bytes, data: bytes, body: int) -> tuple[int, int]:
    if name == b"VP8X":
        return _u24(data, body + 4) + 1, _u24(data, body + 7) + 1
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, body + 6)
        return width & 0x3FFF, height & 0x3FFF
    (bits,) = struct.unpack_from("<I", data, body + 1)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _u24(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)
