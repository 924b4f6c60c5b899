"""TIFF: the page that is the picture, camera raws, and layouts that are refused by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile

from detection.intake.decode import decode
from detection.intake.errors import UnsupportedFormat
from tests.support.images.bad_files import LIMITS

_CFA, _LINEAR_RAW = 32803, 34892


def _picture(side: int = 80) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _written(*pages: tuple[np.ndarray, dict[str, object]], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as writer:
        for samples, how in pages:
            writer.write(samples, **{"photometric": "rgb", "metadata": None} | how)
    return buffer.getvalue()


def _raw(make: str, *, below: bool, photometric: int = _CFA) -> bytes:
    shape = (200, 300) if photometric == _CFA else (200, 300, 3)
    sensor = (np.zeros(shape, np.uint16), {"photometric": photometric})
    tags = {"extratags": [(271, "s", 0, make, True)]}
    preview = (_picture(), {"subfiletype": 1, **tags, **({"subifds": 1} if below else {})})
    return _written(preview, sensor) if below else _written((sensor[0], sensor[1] | tags))


def test_the_picture_behind_a_thumbnail_is_judged() -> None:
    """A page that calls itself a reduced version (NewSubfileType 1) stands in for nothing."""
    full = _picture(96)
    data = _written((_picture(64), {"subfiletype": 1}), (full, {"subfiletype": 0}))
    image = decode(data, limits=LIMITS)
    assert np.array_equal(image.pixels, full)
    assert image.frames == 2


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        ("NIKON CORPORATION", "NEF"),
        ("SONY", "ARW"),
        ("PENTAX", "PEF"),
        ("OLYMPUS IMAGING CORP.", "ORF"),
        ("Panasonic", "RW2"),
        ("Somebody", "TIFF with sensor data"),
    ],
)
def test_a_camera_raw_is_refused_by_its_name(make: str, name: str, *, below: bool) -> None:
    """Sensor data in any page or below one makes a raw file, whatever its preview shows."""
    with pytest.raises(UnsupportedFormat, match=f"camera raw \\({name}\\)"):
        decode(_raw(make, below=below), limits=LIMITS)


def test_linear_raw_is_a_camera_raw() -> None:
    """DNG's LinearRaw is sensor data too."""
    with pytest.raises(UnsupportedFormat, match="camera raw"):
        decode(_raw("SONY", below=True, photometric=_LINEAR_RAW), limits=LIMITS)


def test_a_picture_below_its_thumbnail_is_refused() -> None:
    """Few viewers look below a page, so neither the thumbnail nor the picture is judged."""
    data = _written(
        (_picture(64), {"subfiletype": 1, "subifds": 1}), (_picture(96), {"subfiletype": 0})
    )
    with pytest.raises(UnsupportedFormat, match="SubIFDs"):
        decode(data, limits=LIMITS)


def test_a_file_of_thumbnails_is_refused() -> None:
    """There is no picture to judge."""
    data = _written((_picture(64), {"subfiletype": 1}))
    with pytest.raises(UnsupportedFormat, match="only thumbnails"):
        decode(data, limits=LIMITS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_of_sixteen_bits_are_the_picture(order: str, compression: str | None) -> None:
    """Samples of 16 bits in planes of their own keep their high bytes."""
    picture = _picture()
    planes = np.moveaxis(picture.astype(np.uint16) * 257, 2, 0)
    how = {"planarconfig": "separate", "compression": compression}
    data = _written((planes, how), byteorder=order)
    assert np.array_equal(decode(data, limits=LIMITS).pixels, picture)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_grey_from_white_to_black_is_turned_round(order: str) -> None:
    """Photometric interpretation 0 has white at 0."""
    grey = _picture()[..., 0]
    stored = 65_535 - grey.astype(np.uint16) * 257
    data = _written((stored, {"photometric": "miniswhite"}), byteorder=order)
    assert np.array_equal(decode(data, limits=LIMITS).pixels[..., 0], grey)


def test_a_palette_of_eight_bit_levels_has_its_colours() -> None:
    """A table without any value above 255 was written in levels of 8 bits."""
    indices = _picture()[..., 0]
    table = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    data = _written((indices, {"photometric": "palette", "colormap": table}))
    expected = np.moveaxis(table[:, indices], 0, 2)
    assert np.array_equal(decode(data, limits=LIMITS).pixels, expected)


@pytest.mark.parametrize(
    ("samples", "options", "reason"),
    [
        (np.zeros((80, 80, 3), np.float32), {}, "floating point"),
        (np.zeros((80, 80, 3), np.float16), {}, "floating point"),
        (np.zeros((80, 80), np.int16), {"photometric": "minisblack"}, "signed integers"),
        (np.zeros((80, 80), np.uint32), {"photometric": "minisblack"}, "32 bits"),
        (np.zeros((80, 80), np.complex64), {"photometric": "minisblack"}, "complex"),
        (np.zeros((80, 80, 3), np.uint8), {"photometric": 9}, "interpretation 9"),
    ],
)
def test_other_samples_are_unsupported_and_not_corrupt(
    samples: np.ndarray, options: dict[str, object], reason: str
) -> None:
    """What is wrong is named, and nothing is called broken that is not."""
    with pytest.raises(UnsupportedFormat, match=reason):
        decode(_written((samples, options)), limits=LIMITS)


def test_big_endian_bigtiff_is_refused_by_name() -> None:
    """Pillow does not open one."""
    data = _written((_picture(), {}), bigtiff=True, byteorder=">")
    with pytest.raises(UnsupportedFormat, match="BigTIFF"):
        decode(data, limits=LIMITS)


def test_much_stored_data_is_no_bomb() -> None:
    """A layered file of an editor carries megabytes in one tag, once."""
    layers = [(37724, "B", 300_000, bytes(300_000), True)]
    data = _written((_picture(), {"extratags": layers}))
    assert decode(data, limits=LIMITS).width == 80
