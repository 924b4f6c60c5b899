"""JPEG (ITU-T T.81): size, metadata segments, scans."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detection.intake.errors import DecompressionBomb, Truncated, UnsupportedFormat
from detection.intake.formats.survey import Survey

if TYPE_CHECKING:
    from detection.intake.container_limits import ContainerLimits

# A progressive JPEG has about ten scans; each one visits every pixel however few bytes it has.
_MAX_SCANS = 200
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"


def survey_jpeg(data: bytes, bounds: ContainerLimits) -> Survey:  # noqa: C901 - a branch a marker
    """Walk the markers up to the first scan."""
    at, pieces = 2, 0
    size: tuple[int, int] | None = None
    exif = xmp = b""
    while True:
        if data[at] != 0xFF:  # marker prefix
            at = data.find(b"\xff", at)
            if at < 0:
                message = "The JPEG file ends before its picture begins."
                raise Truncated(message)
        marker = data[at + 1]
        pieces += 1
        bounds.check_pieces(pieces)
        if marker in {0x00, 0x01, 0xFF, 0xD8, *range(0xD0, 0xD8)}:
            at += 1 if marker == 0xFF else 2  # fill byte
            continue
        if marker == 0xD9:  # EOI
            message = "The JPEG file ends before its picture begins."
            raise Truncated(message)
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if marker in _SOF:
            size = _size(body)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):  # APP1
            exif += body[6:]
        elif marker == 0xE1 and body.startswith(_XMP_SEGMENT):  # APP1
            xmp = body[len(_XMP_SEGMENT) :]
        elif marker == 0xDA:  # SOS
            break
        at += 2 + max(length, 2)
    # Inside a scan 0xFF is always escaped, so this pair can only be another scan's header.
    if data.count(b"\xff\xda", at) > _MAX_SCANS:
        message = f"The JPEG file draws its picture in more than {_MAX_SCANS} scans."
        raise DecompressionBomb(message)
    return Survey(size=size, exif=exif, xmp=xmp)


def _size(frame: bytes) -> tuple[int, int]:
    height, width = struct.unpack_from(">HH", frame, 1)
    if height == 0:
        message = (
            "The JPEG file tells its height behind its picture (a DNL marker), which viewers do "
            "not read."
        )
        raise UnsupportedFormat(message)
    return width, height
