"""Real bytes of every kind of upload that intake must take or refuse, made on the spot.

`refused()` maps a name to a `BadFile`: bytes, what came with them, and the `reason` they must end
with under `LIMITS`. `accepted()` maps a name to the bytes of the same picture in every format and
mode that intake takes.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detection.intake.decode import IntakeLimits

LIMITS = IntakeLimits(
    max_bytes=4 * 2**20,
    max_pixels=4_000_000,
    max_frames=50,
    max_metadata_bytes=256 * 2**10,
)

WIDTH, HEIGHT = 96, 80


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFile:
    """Bytes that must be refused with `reason`, and the claims that came with them."""

    data: bytes
    reason: str
    declared_type: str | None = None
    key: str | None = None
    sha256: str | None = None


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth RGB picture whose four corners differ: red, green, blue, white."""
    corners = Image.new("RGB", (2, 2))
    corners.putdata([(220, 30, 30), (30, 200, 30), (30, 30, 220), (240, 240, 240)])
    return corners.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode with Pillow, or with pillow-heif for HEIF."""
    buffer = io.BytesIO()
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture that compresses badly, so that cutting its file cuts its pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------- raw containers


def png_chunk(name: bytes, body: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    *chunks: bytes, width: int = WIDTH, height: int = HEIGHT, pixels: bytes | None = None
) -> bytes:
    """An 8-bit RGB PNG with extra chunks before its pixels."""
    if pixels is None:
        pixels = zlib.compress(b"".join(b"\0" + bytes(3 * width) for _ in range(height)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", pixels),
            png_chunk(b"IEND", b""),
        )
    )


def tiff(
    *entries: tuple[int, int, int, int],
    next_ifd: int = 0,
    extra: bytes = b"",
    before: bytes = b"II*\0",
) -> bytes:
    """A little-endian TIFF (or EXIF block) of one directory: entries (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return before + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_ifd) + extra


def tiff_picture(
    width: int, height: int, *more: tuple[int, int, int, int], **options: int
) -> bytes:
    """An uncompressed 8-bit greyscale TIFF whose strip holds 64 x 64 pixels."""
    entries = (
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, width * height if width * height < 10_000 else 4096),
        *more,
    )
    offset = 8 + 2 + 12 * (len(entries) + 1) + 4
    return tiff(*entries, (273, 4, 1, offset), extra=bytes(4096), **options)  # type: ignore[arg-type]  # next_ifd only


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """One JPEG marker segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(segments: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG with more segments right after its start."""
    plain = encoded(image or picture(), "JPEG", quality=95)
    return plain[:2] + segments + plain[2:]


def gif(frames: int) -> bytes:
    """An animation of one-pixel frames on a canvas of usable size."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    screen = b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0x80, 0, 0) + bytes(6)
    return screen + frame * frames + b"\x3b"


def webp_header(width: int, height: int) -> bytes:
    """A WebP file that claims a canvas and holds nothing else."""
    canvas = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bmp_header(width: int, height: int) -> bytes:
    """A 24-bit BMP without its pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def box(name: bytes, body: bytes) -> bytes:
    """One ISO base media box."""
    return struct.pack(">I", 8 + len(body)) + name + body


def with_exif(kind: str, exif: bytes) -> bytes:
    """An AVIF or HEIF with this very EXIF block, put in unseen by the encoder."""
    harmless = tiff((0x0128, 3, 1, 2)).ljust(len(exif), b"\0")
    data = encoded(picture(), kind, exif=harmless)
    assert harmless in data
    return data.replace(harmless, exif)


def exif_with_copies(entries: int = 3000, size: int = 60_000) -> bytes:
    """An EXIF block whose entries all refer to the same bytes: small, and huge once copied."""
    return tiff(*((tag, 7, size, 16) for tag in range(1, entries)), extra=bytes(20_000))


# ---------------------------------------------------------------- what must be refused


@cache
def refused() -> dict[str, BadFile]:
    """Every bad input, by name."""
    jpeg = encoded(noise(), "JPEG", quality=95)
    whole_png = encoded(noise(), "PNG")
    return (
        _not_images()
        | _cut(jpeg, whole_png)
        | _too_large()
        | _metadata()
        | _animations()
        | _claims(jpeg, whole_png)
        | _corrupt(jpeg, whole_png)
    )


def _not_images() -> dict[str, BadFile]:
    kinds = {
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        "psd": b"8BPS\0\x01" + bytes(30),
        "ico": encoded(picture(64, 64), "ICO"),
        "jp2": encoded(picture(), "JPEG2000"),
        "mp4": box(b"ftyp", b"isom\0\0\0\0isommp42") + box(b"mdat", bytes(64)),
        "webm": b"\x1aE\xdf\xa3" + bytes(60),
        "avi": b"RIFF" + struct.pack("<I", 60) + b"AVI " + bytes(60),
        "ppm": b"P6 80 80 255 " + bytes(80 * 80 * 3),
        "zip": b"PK\x03\x04" + bytes(60),
        "html": b"<!doctype html><html><body>404</body></html>",
        "dng": tiff_picture(64, 64, (0xC612, 1, 4, 0x00000401)),
    }
    return {
        "empty": BadFile(data=b"", reason="empty_file"),
        "text": BadFile(data=b"hello, this is no image\n" * 20, reason="not_an_image"),
        "zeros": BadFile(data=bytes(5000), reason="not_an_image"),
        "one byte": BadFile(data=b"\xff", reason="not_an_image"),
    } | {name: BadFile(data=data, reason="unsupported_format") for name, data in kinds.items()}


def _cut(jpeg: bytes, whole_png: bytes) -> dict[str, BadFile]:
    whole = {
        "jpeg": jpeg,
        "progressive jpeg": encoded(noise(), "JPEG", progressive=True),
        "png": whole_png,
        "webp": encoded(noise(), "WEBP"),
        "avif": encoded(noise(), "AVIF"),
        "heif": encoded(noise(), "HEIF"),
        "gif": encoded(noise(), "GIF"),
        "tiff": encoded(noise(), "TIFF"),
        "bmp": encoded(noise(), "BMP"),
    }
    return {
        f"truncated {name}": BadFile(data=data[: len(data) // 2], reason="truncated")
        for name, data in whole.items()
    } | {"jpeg header only": BadFile(data=jpeg[:20], reason="truncated")}


def _too_large() -> dict[str, BadFile]:
    blank = zlib.compress(bytes(3 * 30_001 * 200), 9)
    jpeg = encoded(picture(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    claims = {
        "png": png(width=30_000, height=30_000, pixels=blank),
        "jpeg": jpeg[: frame + 5] + struct.pack(">HH", 65_000, 65_000) + jpeg[frame + 9 :],
        "webp": webp_header(16_000, 16_000),
        "bmp": bmp_header(50_000, 50_000),
        "tiff": tiff_picture(60_000, 60_000),
        "tiff tile": tiff_picture(64, 64, (322, 4, 1, 60_000), (323, 4, 1, 60_000)),
        "gif": b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + gif(1)[19:],
        "scans": _many_scans(),
        "ztxt": png(png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))),
        "itxt": png(
            png_chunk(b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(bytes(50_000_000), 9))
        ),
        "iccp": png(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(50_000_000), 9))),
    }
    plain = encoded(Image.new("RGB", (2100, 2100), "red"), "BMP")[:4_000_000]
    return {
        f"bomb {name}": BadFile(data=data, reason="decompression_bomb")
        for name, data in claims.items()
    } | {
        "too many bytes": BadFile(data=bytes(LIMITS.max_bytes + 1), reason="too_many_bytes"),
        "too many pixels": BadFile(data=plain, reason="too_many_pixels"),
        "too small": BadFile(data=encoded(picture(63, 400), "PNG"), reason="too_small"),
        "one pixel": BadFile(data=encoded(picture(1, 1), "GIF"), reason="too_small"),
    }


def _many_scans() -> bytes:
    progressive = encoded(picture(), "JPEG", progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    return progressive[:-2] + progressive[scan:-2] * 500 + b"\xff\xd9"


def _metadata() -> dict[str, BadFile]:
    circle = tiff((0x0112, 3, 1, 1), next_ifd=8)
    sub_circle = tiff((0x8769, 4, 1, 26), extra=struct.pack("<HHHIII", 1, 0x9000, 7, 4, 0, 26))
    webp = encoded(picture(), "WEBP", exif=circle)
    data = {
        "jpeg exif circle": jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + circle)),
        "jpeg exif sub circle": jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + sub_circle)),
        "jpeg exif copies": jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + exif_with_copies())),
        "png exif circle": png(png_chunk(b"eXIf", circle)),
        "webp exif circle": webp,
        "avif exif copies": with_exif("AVIF", exif_with_copies()),
        "heif exif copies": with_exif("HEIF", exif_with_copies()),
        "tiff circle": tiff_picture(64, 64, next_ifd=8),
        "tiff copies": tiff_picture(64, 64, *((tag, 7, 4000, 8) for tag in range(40_000, 40_200))),
    }
    return {f"metadata {k}": BadFile(data=v, reason="metadata_bomb") for k, v in data.items()}


def _animations() -> dict[str, BadFile]:
    frames = [Image.new("RGB", (64, 64), (n * 4, 0, 0)) for n in range(60)]
    rest = {"save_all": True, "append_images": frames[1:], "duration": 40}
    data = {
        "gif": gif(150_000),
        "gif short": encoded(frames[0], "GIF", **rest),
        "webp": encoded(frames[0], "WEBP", lossless=True, **rest),
        "apng": encoded(frames[0], "PNG", **rest),
        "tiff": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "avif": encoded(frames[0], "AVIF", **rest),
    }
    return {f"frames {k}": BadFile(data=v, reason="too_many_frames") for k, v in data.items()}


def _claims(jpeg: bytes, whole_png: bytes) -> dict[str, BadFile]:
    reason = "type_mismatch"
    return {
        "checksum": BadFile(data=jpeg, reason="checksum_mismatch", sha256="0" * 64),
        "png sent as svg": BadFile(data=whole_png, reason=reason, declared_type="image/svg+xml"),
        "png called svg": BadFile(data=whole_png, reason=reason, key="logo.SVG"),
        "jpeg sent as html": BadFile(data=jpeg, reason=reason, declared_type="text/html"),
        "jpeg sent as pdf": BadFile(data=jpeg, reason=reason, declared_type="application/pdf"),
        "jpeg called mp4": BadFile(data=jpeg, reason=reason, key="clip.mp4"),
        "jpeg called html": BadFile(data=jpeg, reason=reason, key="a/index.html"),
        "pdf called jpg": BadFile(data=b"%PDF-1.7\n", reason="unsupported_format", key="scan.jpg"),
    }


def _corrupt(jpeg: bytes, whole_png: bytes) -> dict[str, BadFile]:
    idat = whole_png.index(b"IDAT")
    broken_png = whole_png[: idat + 40] + b"\xaa" * 40 + whole_png[idat + 80 :]
    tables = jpeg.index(b"\xff\xc4")
    webp = bytearray(encoded(noise(), "WEBP", lossless=True))
    webp[30:400] = b"\xff" * 370
    avif = encoded(noise(), "AVIF")
    pixels = avif.index(b"mdat") + 4
    return {
        "corrupt png": BadFile(data=broken_png, reason="corrupt"),
        "corrupt jpeg": BadFile(
            data=jpeg[: tables + 5] + b"\xff" * 16 + jpeg[tables + 21 :], reason="corrupt"
        ),
        "corrupt webp": BadFile(data=bytes(webp), reason="corrupt"),
        "corrupt avif": BadFile(data=avif[:pixels] + bytes(len(avif) - pixels), reason="corrupt"),
    }


# ---------------------------------------------------------------- what must be taken


@cache
def accepted() -> dict[str, bytes]:
    """The same picture (to within its codec) in every format and mode that intake takes."""
    image = picture()
    opaque = image.convert("RGBA")
    wide = np.asarray(image).astype(np.uint16) * 257
    return {
        "jpeg": encoded(image, "JPEG", quality=95),
        "jpeg progressive": encoded(image, "JPEG", quality=95, progressive=True),
        "jpeg cmyk": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "mpo": encoded(image, "MPO", quality=95, save_all=True, append_images=[image]),
        "png": encoded(image, "PNG"),
        "png alpha": encoded(opaque, "PNG"),
        "png 16 bit": png(pixels=_rows16(wide)).replace(_ihdr(8), _ihdr(16)),
        "png palette": encoded(image.quantize(256), "PNG"),
        "webp": encoded(image, "WEBP", quality=95),
        "webp lossless": encoded(opaque, "WEBP", lossless=True),
        "avif": encoded(image, "AVIF", quality=95),
        "heif": encoded(image, "HEIF", quality=95),
        "gif": encoded(image, "GIF"),
        "tiff": encoded(image, "TIFF"),
        "tiff lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded(image, "TIFF", compression="jpeg", quality=95),
        "tiff cmyk": encoded(image.convert("CMYK"), "TIFF"),
        "tiff ycbcr": encoded(image.convert("YCbCr"), "TIFF"),
        "tiff lab": encoded(_lab(image), "TIFF"),
        "bmp": encoded(image, "BMP"),
    } | _well_shown(image)


def _well_shown(image: Image.Image) -> dict[str, bytes]:
    """Files with something wrong or large in them that no viewer minds."""
    plain = encoded(image, "PNG")
    end = plain.index(b"IEND") - 4
    text = PngInfo()
    text.add_itxt("Comment", "x" * 400_000)
    xmp = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(60_000))
    wrong_crc = png_chunk(b"tEXt", b"Software\0x")[:-4] + bytes(4)
    gif_file = encoded(image, "GIF")
    comment = b"\x21\xfe" + (b"\xff" + bytes(255)) * 1200 + b"\0"
    webp = encoded(image, "WEBP", quality=95)
    padded = next(
        data
        for quality in range(95, 40, -1)
        if (data := encoded(image, "WEBP", quality=quality)).endswith(b"\0")
    )
    trailers = {
        "samsung": box(b"sefd", b"\0" * 40) + b"SEFHk\0\0\0\x01\0\0\0SEFT",
        "film": box(b"ftyp", b"isom\0\0\0\0isommp42") + box(b"moov", bytes(40)) + bytes(9),
        "jpeg": encoded(image, "JPEG"),
        "short": b"abc",
    }
    return {
        "jpeg much xmp": jpeg_with(xmp * 6),
        "png long text": encoded(image, "PNG", pnginfo=text),
        "png private": plain[:33] + png_chunk(b"prVt", bytes(300_000)) + plain[33:],
        "png wrong crc": plain[:33] + wrong_crc + plain[33:],
        "png odd chunk": plain[:33] + png_chunk(b"s\x01IT", b"\x08") + plain[33:],
        "png without end": plain[:end],
        "png end without crc": plain[:-4],
        "png cut behind its picture": plain[:end] + struct.pack(">I", 500) + b"tEXtcut",
        "gif long comment": gif_file[:-1] + comment + b"\x3b",
        "webp without padding": padded[:-1],
        "webp trailer": webp + b"junk" * 9,
    } | {
        f"{kind.lower()} {name} trailer": encoded(image, kind, quality=95) + trailer
        for kind in ("AVIF", "HEIF")
        for name, trailer in trailers.items()
    }


@cache
def animated() -> dict[str, bytes]:
    """Three frames, red, green and blue, shown for 100, 200 and 700 ms, by format."""
    red, green, blue = (Image.new("RGB", (WIDTH, HEIGHT), name) for name in ("red", "lime", "blue"))
    options = {"save_all": True, "append_images": [green, blue], "duration": [100, 200, 700]}
    return {
        kind: encoded(red, kind, **options, **more)
        for kind, more in (
            ("GIF", {"loop": 0}),
            ("PNG", {"loop": 0}),
            ("WEBP", {"lossless": True, "loop": 0}),
            ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
        )
    }


def _ihdr(depth: int) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, 2, 0, 0, 0))


def _rows16(wide: np.ndarray) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide))


def _lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    return lab
