"""BMP: alpha that is none, and colours told by its later headers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import ImageCms

from detection.intake.decode import decode
from detection.intake.errors import UnsupportedFormat
from tests.support.images.bad_files import LIMITS

_SIDE = 64
_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))


def _bmp(alpha: int, *, size: int = 108, space: bytes = b"BGRs", rest: bytes = b"") -> bytes:
    """A 32-bit V4 or V5 file, all of one red, with masks for alpha."""
    body = bytes([7, 30, 220, alpha]) * _SIDE**2
    info = struct.pack("<IiiHHII", size, _SIDE, _SIDE, 1, 32, 3, len(body)) + bytes(16)
    info += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + space + rest
    info = info.ljust(size, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + size + len(body), 0, 0, 14 + size) + info + body


@pytest.mark.parametrize("size", [108, 124])
@pytest.mark.parametrize("alpha", [0, 255])
def test_an_alpha_that_is_all_zero_is_none(size: int, alpha: int) -> None:
    """Software that knows no alpha writes zeros, and the picture is there."""
    pixels = decode(_bmp(alpha, size=size), limits=LIMITS).pixels
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[220, 30, 7]]


def test_an_alpha_that_is_one_is_composited() -> None:
    """Half clear is half white."""
    pixels = decode(_bmp(128), limits=LIMITS).pixels
    assert np.abs(pixels[5, 5].astype(int) - (237, 142, 131)).max() <= 1


def test_chromaticities_tell_the_colours() -> None:
    """P3 endpoints with a gamma of 2.2 make the red redder."""
    points = []
    white = np.array([0.3127 / 0.3290, 1, 0.3583 / 0.3290])
    columns = np.array([(x, y, 1 - x - y) for x, y in _P3]).T
    for column in (columns * np.linalg.solve(columns, white)).T:
        points += [round(value * 2**30) for value in column]
    rest = struct.pack("<12I", *points, *[round(2.2 * 2**16)] * 3)
    red = decode(_bmp(255, space=bytes(4), rest=rest), limits=LIMITS).pixels[5, 5]
    assert red[0] > 230
    assert red[1] < 20


def test_an_embedded_profile_is_applied() -> None:
    """A V5 header's profile, here sRGB with red and green exchanged, tells the colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    for at in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12):
        profile[at : at + 4] = swap.get(bytes(profile[at : at + 4]), profile[at : at + 4])
    data = _bmp(255, size=124, space=b"DEBM")
    at = 14 + 112
    place = struct.pack("<II", len(data) - 14, len(profile))
    pixels = decode(data[:at] + place + data[at + 8 :] + bytes(profile), limits=LIMITS).pixels
    assert np.abs(pixels[5, 5].astype(int) - (30, 220, 7)).max() <= 3


def test_a_header_of_another_size_is_unsupported() -> None:
    """OS/2's short header is a BMP all the same."""
    data = b"BM" + struct.pack("<IHHI", 30, 0, 0, 30) + struct.pack("<IiiHH", 16, 64, 64, 1, 24)
    with pytest.raises(UnsupportedFormat, match="header of 16 bytes"):
        decode(data + bytes(64 * 64 * 3), limits=LIMITS)
