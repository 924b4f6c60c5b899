"""One picture in every mode, depth, layout and colour description of the formats that intake takes.

`browser_layouts()` holds what a browser shows, `tiff_layouts()` the TIFF files; name to bytes. They
are made here byte by byte or by libraries other than the one that intake decodes with.
"""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms

from tests.support.images.bad_files import encoded, png_chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 80
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def levels() -> NDArray[np.float64]:
    """A picture of (height, width, 3) levels, 0 to 1: smooth colours with a grid in them."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green = x / (WIDTH - 1), y / (HEIGHT - 1)
    blue = 0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 7)
    picture = np.stack([red, green, blue], axis=-1)
    picture[::16, :] *= 0.3
    picture[:, ::24] = 1 - 0.5 * picture[:, ::24]
    return picture


def _scaled(values: NDArray[np.float64], depth: int) -> NDArray[np.uint16]:
    return np.rint(values * (2**depth - 1)).astype(np.uint16)


def _grey(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values @ np.array([0.299, 0.587, 0.114])


def _alpha() -> NDArray[np.float64]:
    return np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))


# ---------------------------------------------------------------- PNG


def _packed(samples: NDArray[np.uint16], depth: int) -> list[bytes]:
    """Rows of a picture of (height, width, channels) samples, as PNG and TIFF store them."""
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    if depth == 8:
        return [row.astype(np.uint8).tobytes() for row in samples]
    bits = (samples.reshape(len(samples), -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return [row.tobytes() for row in np.packbits(bits.reshape(len(samples), -1), axis=1)]


def _png(
    samples: NDArray[np.uint16], depth: int, kind: int, *chunks: bytes, interlaced: bool = False
) -> bytes:
    samples = samples.reshape(HEIGHT, WIDTH, -1)
    passes = [samples]
    if interlaced:  # Adam7
        steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        steps += [(0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [samples[y::down, x::across] for y, x, down, across in steps]
    rows = b"".join(b"\0" + row for part in passes for row in _packed(part, depth))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, interlaced)
    return b"".join(
        (
            _SIGNATURE + png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        )
    )


def _png_layouts() -> dict[str, bytes]:
    picture, alpha = levels(), _alpha()[..., None]
    grey = _grey(picture)[..., None]
    files: dict[str, bytes] = {}
    for depth, interlaced in product((1, 2, 4, 8, 16), (False, True)):
        name = f"{depth} bit{' interlaced' if interlaced else ''}"
        samples = _scaled(grey, depth)
        files[f"png grey {name}"] = _png(samples, depth, 0, interlaced=interlaced)
        key = png_chunk(b"tRNS", struct.pack(">H", int(samples[40, 50, 0])))
        files[f"png grey key {name}"] = _png(samples, depth, 0, key, interlaced=interlaced)
        if depth <= 8:
            palette = np.random.default_rng(5).integers(0, 256, (2**depth, 3), dtype=np.uint8)
            table = png_chunk(b"PLTE", palette.tobytes())
            clear = png_chunk(b"tRNS", bytes(range(0, 256, max(1, 256 >> depth)))[: 2**depth])
            files[f"png palette {name}"] = _png(samples, depth, 3, table, interlaced=interlaced)
            files[f"png palette alpha {name}"] = _png(
                samples, depth, 3, table, clear, interlaced=interlaced
            )
    for depth in (8, 16):
        colour = _scaled(picture, depth)
        key = png_chunk(b"tRNS", struct.pack(">3H", *map(int, colour[40, 50])))
        files |= {
            f"png colour {depth} bit": _png(colour, depth, 2),
            f"png colour key {depth} bit": _png(colour, depth, 2, key),
            f"png colour alpha {depth} bit": _png(
                _scaled(np.concatenate([picture, alpha], axis=-1), depth), depth, 6
            ),
            f"png grey alpha {depth} bit": _png(
                _scaled(np.concatenate([grey, alpha], axis=-1), depth), depth, 4
            ),
        }
    return files | _png_colours()


def _chromaticities(*values: float) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in values)))


def _png_colours() -> dict[str, bytes]:
    """Colours by code points, gamma, chromaticities and profile, and which of them wins."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    eight, sixteen = _scaled(levels(), 8), _scaled(levels(), 16)
    p3 = _chromaticities(0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
    usual = _chromaticities(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    ntsc = _chromaticities(0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08)

    def gamma(value: float) -> bytes:
        return png_chunk(b"gAMA", struct.pack(">I", round(100_000 * value)))

    def points(primaries: int, transfer: int) -> bytes:
        return png_chunk(b"cICP", bytes([primaries, transfer, 0, 1]))

    profile = png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(srgb))
    told = {
        "gamma 2.2": (gamma(0.45455),),
        "gamma 1.8": (gamma(0.55556),),
        "gamma 1": (gamma(1.0),),
        "gamma and usual primaries": (gamma(0.45455), usual),
        "gamma and p3": (gamma(0.45455), p3),
        "gamma and ntsc": (gamma(0.55556), ntsc),
        "primaries alone": (p3,),
        "srgb before gamma": (png_chunk(b"sRGB", b"\0"), gamma(1.0)),
        "profile before gamma": (profile, gamma(1.0)),
        "code points before profile": (points(12, 13), profile),
        "odd gamma": (gamma(0.0),),
    }
    told |= {
        f"code points {primaries} {transfer}": (points(primaries, transfer),)
        for primaries, transfer in (
            *((n, 13) for n in (1, 4, 5, 6, 7, 9, 11, 12, 22)),
            *((1, n) for n in (1, 4, 5, 6, 7, 8, 14, 17)),
            (9, 16),
            (9, 18),
            (12, 16),
        )
    }
    return {f"png {name}": _png(eight, 8, 2, *chunks) for name, chunks in told.items()} | {
        "png 16 bit code points 9 16": _png(sixteen, 16, 2, points(9, 16)),
        "png grey gamma 1": _png(_scaled(_grey(levels()), 8), 8, 0, gamma(1.0)),
    }


# ---------------------------------------------------------------- JPEG, GIF, WebP, AVIF


def _image(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(_scaled(levels(), 8).astype(np.uint8)).convert(mode)


def _lossy_layouts() -> dict[str, bytes]:
    colour, grey = _image(), _image("L")
    clear = colour.copy()
    clear.putalpha(Image.fromarray(_scaled(_alpha(), 8).astype(np.uint8)))
    files = {
        f"jpeg {name}": encoded(colour, "JPEG", quality=95, subsampling=value)
        for name, value in {"444": 0, "422": 1, "420": 2}.items()
    }
    files |= {
        "jpeg progressive": encoded(colour, "JPEG", quality=95, progressive=True),
        "jpeg grey": encoded(grey, "JPEG", quality=95),
        "jpeg rgb": encoded(colour, "JPEG", quality=95, keep_rgb=True),
        "jpeg cmyk": encoded(colour.convert("CMYK"), "JPEG", quality=95),
        "gif": encoded(colour.quantize(200), "GIF"),
        "gif key": encoded(colour.quantize(200), "GIF", transparency=7),
        "gif grey interlaced": encoded(grey, "GIF", interlace=1),
        "webp": encoded(colour, "WEBP", quality=95),
        "webp alpha": encoded(clear, "WEBP", quality=95),
        "webp lossless": encoded(colour, "WEBP", lossless=True),
        "webp lossless alpha": encoded(clear, "WEBP", lossless=True, exact=True),
        "avif alpha": encoded(clear, "AVIF", quality=95, subsampling="4:4:4"),
        "avif grey": encoded(grey, "AVIF", quality=95),
    }
    for subsampling, full in product(("4:4:4", "4:2:2", "4:2:0"), ("full", "limited")):
        files[f"avif {subsampling} {full}"] = encoded(
            colour, "AVIF", quality=95, subsampling=subsampling, range=full
        )
    plain = encoded(colour, "AVIF", quality=95, subsampling="4:4:4")
    at = plain.index(b"colrnclx") + 8
    for primaries, transfer in ((1, 1), (6, 6), (9, 13), (9, 16), (9, 18), (12, 13), (1, 8)):
        told = struct.pack(">HH", primaries, transfer)
        files[f"avif code points {primaries} {transfer}"] = plain[:at] + told + plain[at + 4 :]
    return files


# ---------------------------------------------------------------- BMP


def _bmp(
    rows: list[bytes],
    bits: int,
    *,
    header: int = 40,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    down: bool = False,
    space: bytes = b"BGRs",
) -> bytes:
    """A BMP of the header's size in bytes; rows from the top."""
    body = b"".join(row + bytes(-len(row) % 4) for row in (rows if down else rows[::-1]))
    compression = 3 if masks else 0
    height = -HEIGHT if down else HEIGHT
    if header == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        info = struct.pack("<IiiHHII", header, WIDTH, height, 1, bits, compression, len(body))
        info += struct.pack("<iiII", 2835, 2835, 0, 0)
        info += struct.pack(f"<{len(masks)}I", *masks)
        if header > 40:
            info = info.ljust(4 + 66, b"\0")[:56] if header < 108 else info.ljust(56, b"\0") + space
            info = info.ljust(header, b"\0")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


def _bmp_layouts() -> dict[str, bytes]:
    eight = _scaled(levels(), 8).astype(np.uint8)
    blue_first = eight[..., ::-1]
    wide = np.concatenate([blue_first, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=-1)
    full, half = wide.copy(), wide.copy()
    full[..., 3] = 255
    half[..., 3] = _scaled(_alpha(), 8)
    red, green, blue = (eight[..., i].astype(np.uint16) for i in range(3))
    packed565 = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype("<u2")
    packed555 = (red >> 3 << 10 | green >> 3 << 5 | blue >> 3).astype("<u2")
    argb = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

    def rows(samples: NDArray[np.generic]) -> list[bytes]:
        return [row.tobytes() for row in samples]

    files = {
        "bmp 24": _bmp(rows(blue_first), 24),
        "bmp 24 top down": _bmp(rows(blue_first), 24, down=True),
        "bmp 24 os2": _bmp(rows(blue_first), 24, header=12),
        "bmp 32": _bmp(rows(wide), 32),
        "bmp 32 fourth byte": _bmp(rows(half), 32),
        "bmp 16 555": _bmp(rows(packed555), 16),
        "bmp 16 565": _bmp(rows(packed565), 16, masks=(0xF800, 0x7E0, 0x1F)),
    }
    for header in (56, 108, 124):
        for name, samples in {"zero": wide, "full": full, "some": half}.items():
            files[f"bmp {header} alpha {name}"] = _bmp(rows(samples), 32, header=header, masks=argb)
    for bits in (1, 4, 8):
        palette = np.random.default_rng(6).integers(0, 256, (2**bits, 4), dtype=np.uint8)
        palette[:, 3] = 0
        samples = _scaled(_grey(levels())[..., None], bits)
        files[f"bmp palette {bits}"] = _bmp(_packed(samples, bits), bits, palette=palette.tobytes())
    return files


@cache
def browser_layouts() -> dict[str, bytes]:
    """Every layout of PNG, JPEG, GIF, WebP, AVIF and BMP."""
    return _png_layouts() | _lossy_layouts() | _bmp_layouts()


# ---------------------------------------------------------------- HEIF


@cache
def heif_layouts() -> dict[str, bytes]:
    """HEIF of 8, 10 and 12 bits, each subsampling, with alpha, and in other colours."""
    colour = _image()
    files = {
        f"heif {chroma}": encoded(colour, "HEIF", quality=95, chroma=chroma)
        for chroma in (420, 422, 444)
    }
    clear = colour.copy()
    clear.putalpha(Image.fromarray(_scaled(_alpha(), 8).astype(np.uint8)))
    files["heif alpha"] = encoded(clear, "HEIF", quality=95)
    files["heif grey"] = encoded(_image("L"), "HEIF", quality=95)
    deep = pillow_heif.from_bytes(
        mode="RGB;16", size=(WIDTH, HEIGHT), data=_scaled(levels(), 16).tobytes()
    )
    buffer = io.BytesIO()
    deep.save(buffer, quality=95)
    files["heif 10 bit"] = buffer.getvalue()
    return files


# ---------------------------------------------------------------- TIFF


def _tiff(samples: NDArray[np.generic], **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, **options)
    return buffer.getvalue()


@cache
def tiff_layouts() -> dict[str, bytes]:
    """TIFF by photometric interpretation, depth, byte order, planes, tiles, compression, alpha."""
    picture, alpha = levels(), _alpha()[..., None]
    grey = _grey(picture)
    kinds: dict[str, tuple[NDArray[np.float64], dict[str, object]]] = {
        "grey": (grey, {"photometric": "minisblack"}),
        "grey white is zero": (1 - grey, {"photometric": "miniswhite"}),
        "colour": (picture, {"photometric": "rgb"}),
        "colour alpha": (
            np.concatenate([picture, alpha], axis=-1),
            {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        ),
        "colour premultiplied": (
            np.concatenate([picture * alpha, alpha], axis=-1),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        ),
        "colour unused": (
            np.concatenate([picture, alpha], axis=-1),
            {"photometric": "rgb", "extrasamples": ["unspecified"]},
        ),
        "grey alpha": (
            np.concatenate([grey[..., None], alpha], axis=-1),
            {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        ),
        "cmyk": (
            np.concatenate([1 - picture, 0 * alpha], axis=-1),
            {"photometric": "separated"},
        ),
    }
    storage: dict[str, dict[str, object]] = {
        "": {},
        " deflate": {"compression": "zlib"},
        " predicted": {"compression": "zlib", "predictor": True},
        " tiles": {"tile": (32, 48)},
        " tiles deflate": {"tile": (32, 48), "compression": "zlib"},
        " strips": {"rowsperstrip": 7},
        " big": {"bigtiff": True},
    }
    files: dict[str, bytes] = {}
    for (kind, (samples, options)), (how, more), depth, order in product(
        kinds.items(), storage.items(), (8, 16), "<>"
    ):
        values = _scaled(samples, depth).astype(np.uint8 if depth == 8 else np.uint16)
        name = f"tiff {kind} {depth}{how}{' MM' if order == '>' else ''}"
        files[name] = _tiff(values, byteorder=order, **options, **more)
        if samples.ndim == 3:
            planes = np.moveaxis(values, 2, 0)
            files[f"{name} planes"] = _tiff(
                planes, byteorder=order, planarconfig="separate", **options, **more
            )
    return files | _other_tiffs()


def _other_tiffs() -> dict[str, bytes]:
    colour, grey = _image(), _image("L")
    indexed = colour.quantize(256)
    palette = np.array(indexed.getpalette()).reshape(-1, 3).T.astype(np.uint16)
    table = np.zeros((3, 256), np.uint16)
    table[:, : palette.shape[1]] = palette
    files = {
        f"tiff palette{how}": _tiff(
            np.asarray(indexed), photometric="palette", colormap=table * scale, **more
        )
        for how, scale, more in (
            ("", 257, {}),
            (" deflate", 257, {"compression": "zlib"}),
            (" of 8-bit levels", 1, {}),
        )
    }
    for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma"):
        files[f"tiff {name}"] = encoded(colour, "TIFF", compression=name)
        files[f"tiff grey {name}"] = encoded(grey, "TIFF", compression=name)
    files["tiff jpeg"] = encoded(colour, "TIFF", compression="jpeg", quality=95)
    files["tiff jpeg grey"] = encoded(grey, "TIFF", compression="jpeg", quality=95)
    bilevel = grey.point(lambda level: 255 * (level > 99)).convert("1")
    for name in ("group3", "group4", "tiff_ccitt", "raw"):
        files[f"tiff bilevel {name}"] = encoded(bilevel, "TIFF", compression=name)
    for depth in (2, 4):
        samples = _scaled(_grey(levels())[..., None], depth)
        for photometric in (0, 1):
            files[f"tiff grey {depth} photometric {photometric}"] = _bare_tiff(
                b"".join(_packed(samples, depth)), bits=(depth,), photometric=photometric
            )
    ycc = np.asarray(colour.convert("YCbCr"))
    files["tiff ycbcr 444"] = _bare_tiff(
        ycc.tobytes(), bits=(8, 8, 8), photometric=6, more=((530, 3, 2, 1 | 1 << 16),)
    )
    files["tiff ycbcr 420"] = _bare_tiff(
        _subsampled(ycc), bits=(8, 8, 8), photometric=6, more=((530, 3, 2, 2 | 2 << 16),)
    )
    return files


def _subsampled(ycc: NDArray[np.uint8]) -> bytes:
    """Units of 2 x 2 luma samples and one of each chroma (TIFF 6.0, section 21)."""
    blocks = ycc.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).transpose(0, 2, 1, 3, 4)
    luma = blocks[..., 0].reshape(HEIGHT // 2, WIDTH // 2, 4)
    chroma = blocks[..., 1:].mean(axis=(2, 3)).round().astype(np.uint8)
    return np.concatenate([luma, chroma], axis=-1).tobytes()


def _bare_tiff(
    body: bytes,
    *,
    bits: tuple[int, ...],
    photometric: int,
    more: tuple[tuple[int, int, int, int], ...] = (),
) -> bytes:
    """An uncompressed little-endian TIFF of one strip."""
    count = len(bits)
    depths = struct.pack(f"<{count}H", *bits)
    inline = int.from_bytes(depths.ljust(4, b"\0")[:4], "little")
    tags = [
        (256, 4, 1, WIDTH),
        (257, 4, 1, HEIGHT),
        (258, 3, count, 8 if count > 2 else inline),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 16),
        (277, 3, 1, count),
        (278, 4, 1, HEIGHT),
        (279, 4, 1, len(body)),
        *more,
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    at = 16 + len(body) + len(body) % 2
    head = b"II*\0" + struct.pack("<I", at) + depths.ljust(8, b"\0")[:8]
    return (head + body).ljust(at, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)
