"""The decoder of each kind, called by name so that no other plugin of Pillow can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImagePalette
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    COMPRESSION,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)
from PIL.WebPImagePlugin import WebPImageFile

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

_UNCOMPRESSED, _RAW_16 = 1, 32771
_SEPARATE, _YCBCR = 2, 6


class _TiffImageFile(TiffImageFile):
    """Pillow's plugin, with libtiff where Pillow's own reading gives other pixels."""

    def _setup(self) -> None:
        tags = self.tag_v2
        depths = tags.get(BITSPERSAMPLE, (1,))
        planes = tags.get(PLANAR_CONFIGURATION) == _SEPARATE
        subsampled = tags.get(PHOTOMETRIC_INTERPRETATION) == _YCBCR
        if tags.get(COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED and (
            subsampled or (planes and (max(depths) > 8 or EXTRASAMPLES in tags))
        ):
            # Only a name that is not "raw" makes Pillow ask libtiff, which goes by the file itself.
            tags[COMPRESSION] = _RAW_16
        self.white_is_zero = depths == (16,) and tags.get(PHOTOMETRIC_INTERPRETATION, 0) == 0
        if self.white_is_zero:
            tags[PHOTOMETRIC_INTERPRETATION] = 1  # Pillow reads both alike, where it reads both
        super()._setup()
        entries = tags.get(COLORMAP, ())
        if self.palette is not None and max(entries, default=0) < 256:
            # Some writers give a palette's levels of 8 bits where the standard has 16.
            self.palette = ImagePalette.raw("RGB;L", bytes(entries))


def _open_heif(file: io.BytesIO) -> Image.Image:
    # Loads libheif, which most uploads never need.
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]  # untyped upstream
    return image


#: Kind to what reads its header; `load()` of the result decodes the frame it stands at.
OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "GIF": GifImageFile,
    "WEBP": WebPImageFile,
    "TIFF": _TiffImageFile,
    "BMP": BmpImageFile,
    "AVIF": AvifImageFile,
    "HEIF": _open_heif,
}


def mended(image: Image.Image) -> Image.Image:
    """Return a loaded image with what its plugin leaves undone.

    A BMP whose every alpha is 0 was written by software that knows no alpha, and viewers show it
    opaque. TIFF's 16-bit grey may run from white to black, which Pillow does not turn round.
    """
    if isinstance(image, BmpImageFile) and image.mode == "RGBA":
        blank = image.getchannel("A").getextrema() == (0, 0)
        return image.convert("RGB") if blank else image
    if isinstance(image, _TiffImageFile) and image.white_is_zero:
        turned = Image.fromarray(65_535 - np.asarray(image).astype(np.uint16))
        turned.info = image.info
        return turned
    return image
