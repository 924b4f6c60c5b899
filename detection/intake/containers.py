"""Container structure of JPEG, PNG, GIF, WebP, BMP, TIFF and ISO-BMFF, read before any pixel.

`identify` names the kind from the first bytes; `survey` walks the container of a kind we take,
within bounds, for what a decoder would be too late to refuse: frames, metadata, claimed sizes,
missing ends. Nothing here allocates more than the limits allow.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.intake.errors import Corrupt, DecompressionBomb, Truncated, UnsupportedFormat
from detection.intake.tiff_ifd import directories, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from detection.intake.container_limits import ContainerLimits

# A progressive JPEG has about ten scans; each one visits every pixel however few bytes it has.
_MAX_SCANS = 200
_MAX_EXIF_ITEMS = 16
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

# (offset, magic, kind), tried in this order; the last ones are short and therefore weak.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"CR\x02\x00", "camera raw"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"IIU\x00", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the walk found; sizes in pixels, None where only the decoder's header pass knows.

    `texts` are the text chunks of a PNG, each its name and its body as stored.
    """

    size: tuple[int, int] | None = None
    frames: int = 1
    exif: bytes = b""
    xmp: bytes = b""
    texts: tuple[tuple[bytes, bytes], ...] = ()


def identify(data: bytes) -> str | None:
    """Name the kind of file from its first bytes; None when they are no kind we know."""
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    if data.startswith(b"RIFF"):
        return {b"WEBP": "WEBP", b"AVI ": "AVI video"}.get(data[8:12])
    if data[4:8] in {b"ftyp", b"moov", b"mdat", b"wide"}:
        return _isobmff_kind(data)
    if data.startswith(b"BM") and len(data) > 17 and data[14] in {12, 40, 52, 56, 64, 108, 124}:
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "Netpbm"
    return _text_kind(data[:4096])


def survey(kind: str, data: bytes, bounds: ContainerLimits) -> Survey:
    """Walk a container of a supported kind; raises the refusals that its structure deserves."""
    walk = _WALKS.get(kind)
    if walk is None:
        return Survey()
    try:
        found = walk(data, bounds)
    except (struct.error, IndexError) as error:
        message = f"The {kind} file ends inside its header."
        raise Truncated(message) from error
    if found.exif:
        _check_exif(found.exif, bounds)
    return found


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


# ---------------------------------------------------------------- JPEG


def _walk_jpeg(data: bytes, bounds: ContainerLimits) -> Survey:  # noqa: C901 - one branch a marker kind
    at, metadata, pieces = 2, 0, 0
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
            height, width = struct.unpack_from(">HH", body, 1)
            size = (width, height)
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:  # APPn and COM
            metadata += length
            bounds.check_metadata(metadata)
            if marker == 0xE1 and body.startswith(b"Exif\0\0"):  # APP1
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


_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


# ---------------------------------------------------------------- PNG


def _walk_png(data: bytes, bounds: ContainerLimits) -> Survey:
    at, metadata, frames, pieces = 8, 0, 0, 0
    size: tuple[int, int] | None = None
    exif = b""
    texts: list[tuple[bytes, bytes]] = []
    while True:
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        pieces += 1
        bounds.check_pieces(pieces)
        if name == b"IEND":
            break
        if at + 12 + length > len(data):
            message = f"The PNG file ends inside its {name.decode('latin-1')!r} chunk."
            raise Truncated(message)
        if name == b"IHDR":
            size = struct.unpack_from(">II", data, at + 8)
        elif name == b"fcTL":
            frames += 1
            bounds.check_frames(frames)
        elif name not in {b"IDAT", b"fdAT", b"PLTE"}:
            body = data[at + 8 : at + 8 + length]
            metadata += length + _inflated(name, body, bounds)
            bounds.check_metadata(metadata)
            if name == b"eXIf":
                exif = body
            elif name in {b"tEXt", b"zTXt", b"iTXt"}:
                texts.append((name, body))
        at += 12 + length
    return Survey(size=size, frames=max(1, frames), exif=exif, texts=tuple(texts))


def _inflated(name: bytes, body: bytes, bounds: ContainerLimits) -> int:
    """Bytes that a compressed text or profile chunk unpacks to, stopping at the limit."""
    if name in {b"zTXt", b"iCCP"}:
        packed = body[body.find(b"\0") + 2 :]
    elif name == b"iTXt":
        fields = body.split(b"\0", 1)[-1]
        if not fields.startswith(b"\x01"):
            return 0
        packed = fields[2:].split(b"\0", 2)[-1]
    else:
        return 0
    stream = zlib.decompressobj()
    try:
        size = len(stream.decompress(packed, bounds.max_metadata_bytes))
    except zlib.error:
        return 0
    if stream.unconsumed_tail:
        message = (
            f"A {len(body)}-byte {name.decode()} chunk unpacks to more than "
            f"{bounds.max_metadata_bytes} bytes, the limit (max_metadata_bytes)."
        )
        raise DecompressionBomb(message)
    return size


# ---------------------------------------------------------------- GIF


def _walk_gif(data: bytes, bounds: ContainerLimits) -> Survey:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_palette(flags)
    frames, metadata, pieces = 0, 0, 0
    while at < len(data) and data[at] != 0x3B:  # trailer
        introducer = data[at]
        if introducer == 0x2C:  # image descriptor
            frames += 1
            bounds.check_frames(frames)
            # The first frame decides what is checked; what it needs is checked while decoding.
            at += 11 + _gif_palette(data[at + 9]) if at + 9 < len(data) else len(data)
        elif introducer == 0x21:  # extension
            at += 2
        else:
            break
        while at < len(data) and data[at]:
            pieces += 1
            bounds.check_pieces(pieces)
            if introducer == 0x21:  # extension
                metadata += data[at] + 1
                bounds.check_metadata(metadata)
            at += data[at] + 1
        at += 1
    if frames == 0:
        message = "The GIF file ends before its first frame."
        raise Truncated(message)
    return Survey(size=(width, height), frames=frames)


def _gif_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# ---------------------------------------------------------------- WebP


def _walk_webp(data: bytes, bounds: ContainerLimits) -> Survey:  # noqa: C901 - one branch a chunk kind
    (total,) = struct.unpack_from("<I", data, 4)
    if total + 8 > len(data):
        message = f"The WebP file says {total + 8} bytes and has {len(data)}."
        raise Truncated(message)
    at, metadata, frames, pieces = 12, 0, 0, 0
    size: tuple[int, int] | None = None
    exif = xmp = b""
    while at + 8 <= min(total + 8, len(data)):
        name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        body = at + 8
        pieces += 1
        bounds.check_pieces(pieces)
        if name == b"VP8X":
            size = (_u24(data, body + 4) + 1, _u24(data, body + 7) + 1)
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = (width & 0x3FFF, height & 0x3FFF)
        elif name == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif name == b"ANMF":
            frames += 1
            bounds.check_frames(frames)
        elif name not in {b"ALPH", b"ANIM"}:
            metadata += length
            bounds.check_metadata(metadata)
            if name == b"EXIF":
                exif = data[body : body + length].removeprefix(b"Exif\0\0")
            elif name in {b"XMP ", b"XMP\0"}:  # the second is how ImageMagick 6 writes it
                xmp = data[body : body + length]
        at = body + length + (length & 1)
    if size is None:
        message = "The WebP file holds no picture."
        raise Corrupt(message)
    return Survey(size=size, frames=max(1, frames), exif=exif, xmp=xmp)


def _u24(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)


# ---------------------------------------------------------------- BMP


def _walk_bmp(data: bytes, bounds: ContainerLimits) -> Survey:
    del bounds
    if data[14] == 12:  # the OS/2 1.x header's size
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return Survey(size=(abs(width), abs(height)))


# ---------------------------------------------------------------- AVIF and HEIF


def _walk_isobmff(data: bytes, bounds: ContainerLimits) -> Survey:
    at, pieces, described = 0, 0, False
    while at < len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        header = 8
        if length == 1:
            length, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if length == 0:
            length = len(data) - at
        pieces += 1
        bounds.check_pieces(pieces)
        if length < header and described:
            break  # what follows the last box is no concern of the image
        if length < header or at + length > len(data):
            message = f"The file ends inside its {name.decode('latin-1')!r} box."
            raise Truncated(message)
        if name in {b"meta", b"moov"}:
            described = True
            # Tables, not pixels: an item's pixels are in 'mdat'.
            bounds.check_metadata(length)
        at += length
    # Decoders read EXIF as soon as they open the file, wherever in it the item lies.
    for magic in (b"II*\0", b"MM\0*"):
        at = -1
        for _ in range(_MAX_EXIF_ITEMS):
            at = data.find(magic, at + 1)
            if at < 0:
                break
            _check_exif(data[at:], bounds)
    return Survey()


# ---------------------------------------------------------------- TIFF and EXIF

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 0x0100, 0x0101, 0x0142, 0x0143
_XMP, _DNG_VERSION = 0x02BC, 0xC612


def _walk_tiff(data: bytes, bounds: ContainerLimits) -> Survey:
    frames, xmp = 0, b""
    first: dict[int, int] = {}
    for entries in directories(data, bounds):
        frames += 1
        bounds.check_frames(frames)
        if frames == 1:
            first = {tag: integer(data, kind, value) for tag, kind, _, value in entries}
            xmp = b"".join(bytes(value) for tag, _, _, value in entries if tag == _XMP)
    if _DNG_VERSION in first:
        message = "The file is a camera raw (DNG), which is not checked; upload its JPEG."
        raise UnsupportedFormat(message)
    if first.get(_TILE_WIDTH, 0) * first.get(_TILE_HEIGHT, 0) > bounds.max_pixels:
        message = (
            f"One tile of the TIFF file claims more than {bounds.max_pixels} pixels, "
            "the limit (max_pixels)."
        )
        raise DecompressionBomb(message)
    if _WIDTH not in first or _HEIGHT not in first:
        message = "The TIFF file does not say how large its picture is."
        raise Corrupt(message)
    return Survey(size=(first[_WIDTH], first[_HEIGHT]), frames=frames, xmp=xmp)


def _check_exif(exif: bytes, bounds: ContainerLimits) -> None:
    try:
        for _ in directories(exif, bounds):
            pass
    except (struct.error, IndexError):
        return  # unreadable EXIF is ignored, as every viewer does


_WALKS: dict[str, Callable[[bytes, ContainerLimits], Survey]] = {
    "JPEG": _walk_jpeg,
    "PNG": _walk_png,
    "GIF": _walk_gif,
    "WEBP": _walk_webp,
    "TIFF": _walk_tiff,
    "BMP": _walk_bmp,
    "AVIF": _walk_isobmff,
    "HEIF": _walk_isobmff,
}
SUPPORTED = frozenset(_WALKS)
