"""PNG: colour keys, what tells colours, chunks that are large, wrong or missing."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import ImageCms

from detection.intake.decode import IntakeLimits, decode
from detection.intake.errors import Corrupt, DecompressionBomb, UnsupportedFormat
from tests.support.images.bad_files import LIMITS, WIDTH, png, png_chunk

_LARGE = IntakeLimits(
    max_bytes=2**26, max_pixels=2**22, max_frames=50, max_metadata_bytes=8 * 2**20
)


def _made(depth: int, kind: int, samples: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 64 x 64 whose rows hold `samples` as they are stored."""
    header = struct.pack(">IIBBBBB", 64, 64, depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""),
        )
    )


def _halves(left: int, right: int, depth: int) -> np.ndarray:
    """Rows of grey whose left half is one level and whose right half another."""
    levels = np.repeat([left, right], 32)
    if depth == 16:
        return np.tile(levels.astype(">u2"), (64, 1))
    bits = (levels[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.tile(np.packbits(bits), (64, 1))


@pytest.mark.parametrize(
    ("depth", "clear", "other", "shown"),
    [
        (1, 0, 1, 255),
        (2, 1, 2, 170),
        (4, 5, 6, 102),
        (4, 0, 15, 255),
        (8, 77, 78, 78),
        (16, 0x1234, 0x1235, 0x12),
        (16, 0xFFFF, 0xFF00, 0xFE),
    ],
)
def test_a_grey_colour_key_clears_its_level_only(
    depth: int, clear: int, other: int, shown: int
) -> None:
    """The key's level is white paper, the next level is not, in every depth."""
    key = png_chunk(b"tRNS", struct.pack(">H", clear))
    pixels = decode(_made(depth, 0, _halves(clear, other, depth), key), limits=LIMITS).pixels
    assert pixels[10, 10].tolist() == [255] * 3
    assert pixels[10, 50].tolist() == [shown] * 3


def test_a_colour_key_of_sixteen_bits_clears_its_colour() -> None:
    """The key is compared by what 8 bits keep of it."""
    clear, other = (0x1234, 0x5678, 0x9ABC), (0x2234, 0x5678, 0x9ABC)
    row = np.array([*clear * 32, *other * 32], ">u2")
    key = png_chunk(b"tRNS", struct.pack(">3H", *clear))
    pixels = decode(_made(16, 2, np.tile(row, (64, 1)), key), limits=LIMITS).pixels
    assert pixels[10, 10].tolist() == [255] * 3
    assert pixels[10, 50].tolist() == [0x22, 0x56, 0x9A]


@pytest.mark.parametrize("name", [b"tRNS", b"gAMA", b"cICP", b"eXIf"])
def test_a_chunk_without_its_checksum_shows_nothing_else(name: bytes) -> None:
    """Viewers ignore it, so a wrong checksum neither hides nor recolours a picture."""
    body = {
        b"tRNS": struct.pack(">H", 77),
        b"gAMA": struct.pack(">I", 100_000),
        b"cICP": bytes([9, 16, 0, 1]),
        b"eXIf": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0",
    }[name]
    whole = png_chunk(name, body)
    samples = _halves(77, 200, 8)
    plain = decode(_made(8, 0, samples), limits=LIMITS).pixels
    damaged = decode(_made(8, 0, samples, whole[:-1] + b"?"), limits=LIMITS).pixels
    assert np.array_equal(damaged, plain)
    assert not np.array_equal(decode(_made(8, 0, samples, whole), limits=LIMITS).pixels, plain)


def test_a_header_without_its_checksum_is_corrupt() -> None:
    """What the picture cannot do without spoils it, as in every viewer."""
    data = png()
    with pytest.raises(Corrupt, match="IHDR"):
        decode(data[:29] + bytes(4) + data[33:], limits=LIMITS)


@pytest.mark.parametrize("size", [2 * 2**20, 7 * 2**20])
@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
def test_metadata_within_our_own_limit_is_taken(name: bytes, size: int) -> None:
    """Pillow's limit of 1 MiB is not ours."""
    chunk = png_chunk(name, b"name\0\0" + zlib.compress(bytes(size)))
    assert decode(png(chunk), limits=_LARGE).width == WIDTH


def test_a_large_profile_is_applied() -> None:
    """A profile of more than 1 MiB tells colours like a small one."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grown = bytearray(srgb + bytes(2 * 2**20))
    grown[:4] = struct.pack(">I", len(grown))
    swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132]), 12):
        name = bytes(grown[at : at + 4])
        grown[at : at + 4] = swap.get(name, name)
    chunk = png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(grown)))
    row = np.tile(np.array([255, 0, 0], np.uint8), 64)
    pixels = decode(_made(8, 2, np.tile(row, (64, 1)), chunk), limits=_LARGE).pixels
    assert np.abs(pixels[5, 5].astype(int) - (0, 255, 0)).max() <= 4


def test_what_unpacks_beyond_the_limit_is_refused() -> None:
    """Several chunks together count as one."""
    chunk = png_chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(5 * 2**20)))
    with pytest.raises(DecompressionBomb, match="zTXt"):
        decode(png(chunk, chunk), limits=_LARGE)


def test_levels_of_video_range_and_apples_variant_are_refused_by_name() -> None:
    """The reason names what the file is."""
    with pytest.raises(UnsupportedFormat, match="cICP"):
        decode(png(png_chunk(b"cICP", bytes([1, 13, 0, 0]))), limits=LIMITS)
    plain = png()
    with pytest.raises(UnsupportedFormat, match="CgBI"):
        decode(plain[:8] + png_chunk(b"CgBI", bytes(4)) + plain[8:], limits=LIMITS)
