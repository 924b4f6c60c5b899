"""Training images: the pixels that the service would score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.intake.decode import decode
from tests.support.images import bad_files
from tests.support.images.bad_files import HEIGHT, LIMITS, WIDTH, encoded, picture
from training.data.manifest import Entry
from training.data.samples import read_pixels

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, data: bytes) -> tuple[np.ndarray, str]:
    """Read one file as an image of a labelled folder."""
    file = folder / "image"
    file.write_bytes(data)
    return read_pixels(Entry(path=file, label="real", set="s", family="", group="g"))


@pytest.mark.parametrize("name", [name for name in bad_files.accepted() if "heif" not in name])
def test_a_file_is_read_as_an_upload_is(tmp_path: Path, name: str) -> None:
    """Whatever its format and mode, the pixels are those of the service's decoder."""
    data = bad_files.accepted()[name]
    upload = decode(data, limits=LIMITS)
    pixels, kind = read(tmp_path, data)
    np.testing.assert_array_equal(pixels, upload.pixels)
    assert kind == upload.format


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photograph_stands_upright(tmp_path: Path, kind: str) -> None:
    """A camera that was held sideways says so in its file, and is believed once."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), kind, exif=exif)
    pixels = read(tmp_path, data)[0]
    assert pixels.shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(pixels, decode(data, limits=LIMITS).pixels)
