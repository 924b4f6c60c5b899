"""BMP (Windows' BITMAPINFOHEADER to BITMAPV5HEADER, OS/2 1.x): size and colours."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detection.intake.colour_spaces import by_measurement
from detection.intake.errors import UnsupportedFormat
from detection.intake.formats.survey import Survey

if TYPE_CHECKING:
    from detection.intake.colour_spaces import ColourSpace
    from detection.intake.container_limits import ContainerLimits

_CORE = 12  # the OS/2 1.x header's size
_HEADERS = {_CORE, 40, 52, 56, 64, 108, 124}
_CALIBRATED, _EMBEDDED = b"\0\0\0\0", b"DEBM"


def survey_bmp(data: bytes, bounds: ContainerLimits) -> Survey:
    """Read the header; its colours are told by chromaticities (V4) or a profile (V5)."""
    (header,) = struct.unpack_from("<I", data, 14)
    if header not in _HEADERS:
        message = f"The file is a BMP with a header of {header} bytes, which is not checked."
        raise UnsupportedFormat(message)
    if header == _CORE:
        width, height = struct.unpack_from("<HH", data, 18)
        return Survey(size=(width, height))
    width, height = struct.unpack_from("<ii", data, 18)
    space = data[70:74] if header >= 108 else b""
    icc = _profile(data, bounds) if header == 124 and space == _EMBEDDED else None
    colours = _calibrated(data) if space == _CALIBRATED else None
    return Survey(size=(abs(width), abs(height)), icc=icc, colours=colours)


def _profile(data: bytes, bounds: ContainerLimits) -> bytes | None:
    start, size = struct.unpack_from("<II", data, 14 + 112)
    profile = data[14 + start : 14 + start + min(size, bounds.max_metadata_bytes)]
    return profile if len(profile) == size else None


def _calibrated(data: bytes) -> ColourSpace | None:
    """Endpoints as CIE XYZ in 2.30 fixed point, gamma of each channel in 16.16."""
    numbers = struct.unpack_from("<12I", data, 74)
    points = [tuple(value / 2**30 for value in numbers[i : i + 3]) for i in (0, 3, 6)]
    gammas = [value / 2**16 for value in numbers[9:]]
    if min(sum(point) for point in points) <= 0 or not gammas[0] == gammas[1] == gammas[2]:
        return None
    white = [sum(values) for values in zip(*points, strict=True)]
    flat = [value / sum(point) for point in (*points, white) for value in point[:2]]
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = flat
    primaries = (red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y)
    return by_measurement(primaries, 1 / gammas[0]) if gammas[0] else None
