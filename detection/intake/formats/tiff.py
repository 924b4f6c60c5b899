"""TIFF 6.0: which page is the picture, and whether its layout is one that is read rightly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.intake.errors import Corrupt, DecompressionBomb, UnsupportedFormat
from detection.intake.formats.survey import Survey
from detection.intake.tiff_ifd import directories, integer, integers, sub_pages

if TYPE_CHECKING:
    from detection.intake.container_limits import ContainerLimits
    from detection.intake.tiff_ifd import Entry

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION = 254, 255, 256, 257, 258, 259
_PHOTOMETRIC, _SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _FORMAT = 262, 277, 284, 322, 323, 339
_MAKE, _XMP, _DNG_VERSION = 271, 700, 50706
_REDUCED = 1  # a bit of NewSubfileType
_UNSIGNED, _FLOAT = 1, 3
_SEPARATE = 2
_FORMATS = {2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex numbers"}
_GREY = {0, 1}
_PHOTOMETRICS = {0, 1, 2, 3, 5, 6, 8}
# Colour filter array and linear raw (DNG); raw formats of several makers use them too.
_RAW_PHOTOMETRICS = {32803, 34892}
# Nikon, Sony, Kodak, Samsung and Pentax pack sensor data by methods of their own.
_RAW_COMPRESSIONS = {34713, 32767, 32769, 32770, 65000, 65535}
_RAW_NAMES = {
    "NIKON": "NEF",
    "SONY": "ARW",
    "PENTAX": "PEF",
    "RICOH": "PEF or DNG",
    "OLYMPUS": "ORF",
    "PANASONIC": "RW2",
    "LEICA": "RWL or DNG",
    "SAMSUNG": "SRW",
    "HASSELBLAD": "3FR",
    "EPSON": "ERF",
    "KODAK": "DCR or KDC",
    "EASTMAN": "DCR or KDC",
    "LEAF": "MOS",
    "MAMIYA": "MEF",
    "PHASE ONE": "IIQ",
    "CANON": "CR2",
}


@dataclass(frozen=True, slots=True)
class _Page:
    """The tags of one page that say what it is; the first integer of each."""

    number: int
    values: dict[int, int]
    bits: tuple[int, ...]

    @property
    def is_thumbnail(self) -> bool:
        """Whether the page calls itself a smaller version of another one."""
        return bool(self.values.get(_SUBFILE, 0) & _REDUCED or self.values.get(_OLD_SUBFILE) == 2)

    @property
    def is_raw(self) -> bool:
        return (
            self.values.get(_PHOTOMETRIC) in _RAW_PHOTOMETRICS
            or self.values.get(_COMPRESSION) in _RAW_COMPRESSIONS
            or _DNG_VERSION in self.values
        )


def survey_tiff(data: bytes, bounds: ContainerLimits) -> Survey:
    """Choose the first page that is no thumbnail; raises `UnsupportedFormat` where none is read.

    A camera's raw file is refused by its name: its first page is a thumbnail or a preview, and its
    picture is a sensor's. So is a layout that Pillow reads as other pixels than are stored.
    """
    if data.startswith(b"MM\0+"):
        message = "The file is a BigTIFF with the highest byte first, which is not checked."
        raise UnsupportedFormat(message)
    pages: list[_Page] = []
    xmp = b""
    for entries in directories(data, bounds):
        pages.append(_page(len(pages), data, entries))
        bounds.check_frames(len(pages))
        xmp = xmp or b"".join(bytes(value) for tag, _, _, value in entries if tag == _XMP)
        _check_below(data, pages[-1], entries, bounds)
    page = next((page for page in pages if not page.is_thumbnail), None)
    if page is None:
        message = "The TIFF file holds only thumbnails (NewSubfileType 1) and no picture."
        raise UnsupportedFormat(message)
    if not page.values.get(_WIDTH) or not page.values.get(_HEIGHT):
        message = "The TIFF file does not say how large its picture is."
        raise Corrupt(message)
    if page.values.get(_TILE_WIDTH, 0) * page.values.get(_TILE_HEIGHT, 0) > bounds.max_pixels:
        message = (
            f"One tile of the TIFF file claims more than {bounds.max_pixels} pixels, "
            "the limit (max_pixels)."
        )
        raise DecompressionBomb(message)
    _check_layout(page)
    size = (page.values[_WIDTH], page.values[_HEIGHT])
    return Survey(size=size, frames=len(pages), xmp=xmp, page=page.number)


def _check_below(data: bytes, page: _Page, entries: list[Entry], bounds: ContainerLimits) -> None:
    below = [_page(-1, data, found) for found in sub_pages(data, entries, bounds)]
    if page.is_raw or any(found.is_raw for found in below):
        raise UnsupportedFormat(_raw_message(entries))
    if page.is_thumbnail and any(not found.is_thumbnail for found in below):
        message = (
            "The TIFF file's first page is a thumbnail, and its picture lies below that page "
            "(SubIFDs), where few viewers look; save the picture as a page of its own."
        )
        raise UnsupportedFormat(message)


def _page(number: int, data: bytes, entries: list[Entry]) -> _Page:
    values = {tag: integer(data, kind, value) for tag, kind, _, value in entries}
    bits = next(
        (integers(data, kind, value[:64]) for tag, kind, _, value in entries if tag == _BITS), (1,)
    )
    return _Page(number, values, bits)


def _raw_message(entries: list[Entry]) -> str:
    values = {tag: bytes(value[:64]) for tag, _, _, value in entries}
    if _DNG_VERSION in values:
        name = "DNG"
    else:
        make = values.get(_MAKE, b"").decode("ascii", "replace").strip("\0 ").upper()
        names = (name for maker, name in _RAW_NAMES.items() if make.startswith(maker))
        name = next(names, "TIFF with sensor data")
    return f"The file is a camera raw ({name}), which is not checked; upload its JPEG."


def _check_layout(page: _Page) -> None:
    photometric = page.values.get(_PHOTOMETRIC, 0)
    sample_format = page.values.get(_FORMAT, _UNSIGNED)
    grey = photometric in _GREY and page.values.get(_SAMPLES, 1) == 1
    planes = page.values.get(_PLANAR) == _SEPARATE
    if photometric in _GREY and planes and page.values.get(_SAMPLES, 1) > 1:
        reason = "grey and alpha in planes of their own"
    elif photometric not in _PHOTOMETRICS:
        reason = f"colours of a kind that is not checked (photometric interpretation {photometric})"
    elif sample_format == _FLOAT and grey and photometric and page.bits == (32,):
        return  # scaled to its own range
    elif sample_format in _FORMATS:
        reason = f"samples in {_FORMATS[sample_format]}"
    elif max(page.bits, default=1) > 16:
        reason = f"samples of {max(page.bits)} bits"
    else:
        return
    message = (
        f"The TIFF file has {reason}, which is not checked; save it with 8 or 16 unsigned bits a "
        "sample, and its samples together."
    )
    raise UnsupportedFormat(message)
