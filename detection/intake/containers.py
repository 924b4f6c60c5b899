"""Container structure of JPEG, PNG, GIF, WebP, BMP, TIFF and ISO-BMFF, read before any pixel.

`identify` names the kind from the first bytes; `survey` walks the container of a kind we take,
within bounds, for what a decoder would be too late to refuse: frames, metadata, claimed sizes,
missing ends. Nothing here allocates more than the limits allow.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from detection.intake.errors import Truncated
from detection.intake.formats.bmp import survey_bmp
from detection.intake.formats.gif import survey_gif
from detection.intake.formats.isobmff import survey_avif, survey_heif
from detection.intake.formats.jpeg import survey_jpeg
from detection.intake.formats.png import survey_png
from detection.intake.formats.survey import Survey
from detection.intake.formats.tiff import survey_tiff
from detection.intake.formats.webp import survey_webp
from detection.intake.tiff_ifd import directories

if TYPE_CHECKING:
    from collections.abc import Callable

    from detection.intake.container_limits import ContainerLimits

_MAX_EXIF_ITEMS = 16

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

# (offset, magic, kind), tried in this order; the last ones are short and therefore weak.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"CR\x02\x00", "camera raw (CR2)"),
    (4, b"ftypcrx ", "camera raw (CR3)"),
    (6, b"HEAPCCDR", "camera raw (CRW)"),
    (0, b"\0MRM", "camera raw (MRW)"),
    (0, b"FOVb", "camera raw (X3F)"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"IIU\x00", "camera raw (RW2)"),
    (0, b"IIRO", "camera raw (ORF)"),
    (0, b"IIRS", "camera raw (ORF)"),
    (0, b"MMOR", "camera raw (ORF)"),
    (0, b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"OggS", "Ogg"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (0, b"\x00\x00\x01\xb3", "MPEG video"),
    (0, b"icns", "icon"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"\x00\x00\x02\x00", "icon"),
    (0, b"DDS ", "DirectDraw texture"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"gimp xcf ", "GIMP"),
    (0, b"\xd7\xcd\xc6\x9a", "Windows metafile"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FORM", "IFF"),
    (0, b"PK\x03\x04", "ZIP"),
)


def identify(data: bytes) -> str | None:
    """Name the kind of file from its first bytes; None when they are no kind we know."""
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    if data.startswith(b"RIFF"):
        return {b"WEBP": "WEBP", b"AVI ": "AVI video"}.get(data[8:12])
    if data[4:8] in {b"ftyp", b"moov", b"mdat", b"wide"}:
        return _isobmff_kind(data)
    if (
        data.startswith(b"BM")
        and len(data) > 17
        and 12 <= int.from_bytes(data[14:18], "little") <= 124
    ):
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "Netpbm"
    return _text_kind(data[:4096])


def survey(kind: str, data: bytes, bounds: ContainerLimits) -> Survey:
    """Walk a container of a supported kind; raises the refusals that its structure deserves."""
    walk = _SURVEYS.get(kind)
    if walk is None:
        return Survey()
    try:
        found = walk(data, bounds)
    except (struct.error, IndexError) as error:
        message = f"The {kind} file ends inside its header."
        raise Truncated(message) from error
    if found.exif:
        _check_exif(found.exif, bounds)
    if kind in {"AVIF", "HEIF"}:
        _check_items(data if found.picture is None else found.picture, bounds)
    # Parsing a packet costs many times its size, and none that says anything is so long.
    return found if len(found.xmp) <= bounds.max_metadata_bytes else replace(found, xmp=b"")


# ---------------------------------------------------------------- kinds


def _isobmff_kind(data: bytes) -> str:
    if data[4:8] != b"ftyp":
        return "QuickTime video"
    length = min(int.from_bytes(data[:4], "big"), 1024)
    brands = {data[i : i + 4] for i in (8, *range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    if data[8:12] in _HEIF_BRANDS or brands & (_HEIF_BRANDS - {b"mif1", b"msf1"}):
        return "HEIF"
    return "MP4 or QuickTime video"


def _text_kind(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<svg") or (
        text.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in text
    ):
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if text.startswith(b"/* xpm */"):
        return "XPM"
    return None


def _check_items(data: bytes, bounds: ContainerLimits) -> None:
    """Check EXIF wherever in an AVIF or HEIF it lies: decoders read it as soon as they open."""
    for magic in (b"II*\0", b"MM\0*"):
        at = -1
        for _ in range(_MAX_EXIF_ITEMS):
            at = data.find(magic, at + 1)
            if at < 0:
                break
            _check_exif(data[at:], bounds)


def _check_exif(exif: bytes, bounds: ContainerLimits) -> None:
    try:
        for _ in directories(exif, bounds):
            pass
    except (struct.error, IndexError):
        return  # unreadable EXIF is ignored, as every viewer does


_SURVEYS: dict[str, Callable[[bytes, ContainerLimits], Survey]] = {
    "JPEG": survey_jpeg,
    "PNG": survey_png,
    "GIF": survey_gif,
    "WEBP": survey_webp,
    "TIFF": survey_tiff,
    "BMP": survey_bmp,
    "AVIF": survey_avif,
    "HEIF": survey_heif,
}
SUPPORTED = frozenset(_SURVEYS)
