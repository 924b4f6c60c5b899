"""`detection.intake.decode` on real bytes of every good and bad kind."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from detection.intake.container_limits import ContainerLimits
from detection.intake.containers import identify, survey
from detection.intake.decode import decode
from detection.intake.errors import ImageRejected, TooManyFrames, TypeMismatch, UnsupportedFormat
from detection.intake.pdq import hamming
from tests.support.images import bad_files
from tests.support.images.bad_files import HEIGHT, LIMITS, WIDTH, encoded, picture, tiff

# What each codec may move a level by, on a smooth picture.
_LOSSY = {"png palette": 40, "gif": 40, "gif long comment": 40, "tiff lab": 40}


@pytest.mark.parametrize("name", bad_files.accepted())
def test_every_format_and_mode_gives_the_same_picture(name: str) -> None:
    """The same picture comes out of every codec, upright, in sRGB, as contiguous bytes."""
    data = bad_files.accepted()[name]
    image = decode(data, limits=LIMITS)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert image.pixels.shape == (HEIGHT, WIDTH, 3) == (image.height, image.width, 3)
    difference = np.abs(image.pixels.astype(int) - np.asarray(picture()).astype(int))
    assert difference.max() <= _LOSSY.get(name, 8)
    assert difference.mean() < 4
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.size_bytes == len(data)
    assert image.frames == 1
    assert len(image.pdq) == 32
    assert image.pdq_quality <= 100


@pytest.mark.parametrize("name", bad_files.refused())
def test_every_bad_file_is_refused_with_its_reason(name: str) -> None:
    """Each bad input ends in its own class of refusal, with a message for people."""
    bad = bad_files.refused()[name]
    with pytest.raises(ImageRejected) as caught:
        decode(
            bad.data,
            limits=LIMITS,
            declared_type=bad.declared_type,
            key=bad.key,
            sha256=bad.sha256,
        )
    assert caught.value.reason == bad.reason
    assert str(caught.value).endswith(".")


# ---------------------------------------------------------------- orientation


def _exif(orientation: int) -> bytes:
    return b"Exif\0\0" + tiff((0x0112, 3, 1, orientation))


# Where the stored red, green, blue and white corners (top left, top right, bottom left, bottom
# right) are seen, by EXIF 2.32: value 6, for example, is a camera held with its right side down.
_SEEN = {
    1: ["rg", "bw"],
    2: ["gr", "wb"],
    3: ["wb", "gr"],
    4: ["bw", "rg"],
    5: ["rb", "gw"],
    6: ["br", "wg"],
    7: ["wg", "br"],
    8: ["gw", "rb"],
}
_COLOURS = {"r": (255, 10, 7), "g": (0, 217, 4), "b": (0, 3, 241), "w": (252, 255, 255)}


def _corners(pixels: np.ndarray) -> list[str]:
    def name(pixel: np.ndarray) -> str:
        return min(_COLOURS, key=lambda c: int(np.abs(pixel.astype(int) - _COLOURS[c]).sum()))

    return [
        name(pixels[2, 2]) + name(pixels[2, -3]),
        name(pixels[-3, 2]) + name(pixels[-3, -3]),
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    """Every EXIF orientation stands upright in every format that carries one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif)
    image = decode(data, limits=LIMITS)
    assert _corners(image.pixels) == _SEEN[orientation]
    assert (image.width, image.height) == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))


def test_heif_is_turned_once() -> None:
    """A HEIF is turned by its own property, and the EXIF tag beside it does not turn it again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encoded(picture(), "HEIF", exif=exif.tobytes()), limits=LIMITS)
    assert _corners(image.pixels) == _SEEN[6]


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0" + tiff((0x0112, 3, 1, 99)),
        b"Exif\0\0" + tiff((0x0112, 3, 1, 6))[:-12],
        b"Exif\0\0MM*\0garbage",
    ],
)
def test_broken_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    """EXIF that says nothing readable turns nothing and refuses nothing."""
    data = bad_files.jpeg_with(bad_files.jpeg_segment(0xE1, exif))
    assert _corners(decode(data, limits=LIMITS).pixels) == _SEEN[1]


# ---------------------------------------------------------------- colour


def _icc(*colorants: tuple[float, float, float], space: bytes = b"RGB ") -> bytes:
    """A matrix ICC profile (ICC.1:2001-04) with gamma 2.2 and the given XYZ colorants."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(number(v) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0233, 0)
    white = (0.9642, 1.0, 0.8249)
    tags = [(b"wtpt", xyz(white))]
    tags += [(n, xyz(c)) for n, c in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    tags.append((b"desc", b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(80)))
    tags.append((b"cprt", b"text\0\0\0\0none"))
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags:
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(body), len(value))
        body += padded
    header = struct.pack(
        ">I4sI4s4s4s", at + len(body), b"\0\0\0\0", 0x02100000, b"mntr", space, b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(number(v) for v in white)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


# sRGB's own colorants, adapted to D50 (IEC 61966-2-1 with the Bradford transform).
_RED, _GREEN, _BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_profile_is_applied(kind: str) -> None:
    """A profile whose red primary is sRGB's green turns stored red into green."""
    swapped = _icc(_GREEN, _RED, _BLUE)
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(red, kind, icc_profile=swapped, **options), limits=LIMITS).pixels
    assert np.abs(pixels.reshape(-1, 3).astype(int) - (0, 255, 0)).max() <= 4


def test_profile_of_srgb_changes_no_pixel() -> None:
    """Pixels that are sRGB already come out bit for bit."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = bad_files.noise()
    pixels = decode(encoded(noise, "PNG", icc_profile=srgb), limits=LIMITS).pixels
    assert np.array_equal(pixels, np.asarray(noise))


@pytest.mark.parametrize(
    "profile", [b"junk", _icc(_GREEN, _RED, _BLUE)[:200], _icc(_RED, _GREEN, _BLUE, space=b"CMYK")]
)
def test_broken_profile_is_ignored(profile: bytes) -> None:
    """A profile that is broken or of another colour space leaves the pixels alone."""
    pixels = decode(encoded(picture(), "PNG", icc_profile=profile), limits=LIMITS).pixels
    assert np.array_equal(pixels, np.asarray(picture()))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("inks", "colour"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_cmyk_inks_give_their_colours(
    kind: str, inks: tuple[int, ...], colour: tuple[int, ...]
) -> None:
    """Without a profile cyan ink absorbs red, and so on; black ink absorbs all."""
    data = encoded(Image.new("CMYK", (64, 64), inks), kind)
    pixels = decode(data, limits=LIMITS).pixels
    assert np.abs(pixels[32, 32].astype(int) - colour).max() <= 3


def test_sixteen_bit_greyscale_is_scaled() -> None:
    """16-bit levels map to their nearest 8-bit level over the whole range, not clipped."""
    ramp = np.linspace(0, 65535, 96).astype(np.uint16)
    grey = np.tile(ramp, (80, 1))
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(grey), kind), limits=LIMITS).pixels
        assert np.array_equal(pixels[..., 0], np.rint(grey / 257).astype(np.uint8))
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0])
def test_float_greyscale_is_scaled(scale: float) -> None:
    """Float levels are read at the least usual full scale that holds them; NaN is black."""
    ramp = np.tile(np.linspace(0, scale, 96, dtype=np.float32), (80, 1))
    ramp[0, 0] = np.nan
    pixels = decode(encoded(Image.fromarray(ramp), "TIFF"), limits=LIMITS).pixels
    assert pixels[0, 0, 0] == 0
    assert pixels[5, -1, 0] == 255
    assert abs(int(pixels[5, 48, 0]) - 129) <= 1


def test_transparency_is_composited_over_white() -> None:
    """Clear pixels are white whatever colour they hide; half-clear ones are half white."""
    image = Image.new("RGBA", (96, 80), (200, 0, 0, 255))
    image.paste((10, 20, 30, 0), (0, 0, 48, 40))
    image.paste((0, 0, 0, 128), (48, 40, 96, 80))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        pixels = decode(encoded(image, kind, **options), limits=LIMITS).pixels
        assert tuple(pixels[10, 10]) == (255, 255, 255)
        assert tuple(pixels[10, 60]) == (200, 0, 0)
        assert np.abs(pixels[60, 60].astype(int) - 127).max() <= 1


def test_palette_transparency() -> None:
    """A palette's clear entries are white, in PNG by alpha table and in GIF by index."""
    image = Image.new("P", (96, 80), 0)
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.paste(1, (48, 0, 96, 80))
    for kind, transparency in (("PNG", bytes([0, 255])), ("PNG", 0), ("GIF", 0)):
        pixels = decode(encoded(image, kind, transparency=transparency), limits=LIMITS).pixels
        assert tuple(pixels[10, 10]) == (255, 255, 255)
        assert tuple(pixels[10, 60]) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_bilevel(kind: str) -> None:
    """One-bit images are black and white."""
    image = Image.new("1", (96, 80), 1)
    image.paste(0, (0, 0, 48, 80))
    pixels = decode(encoded(image, kind), limits=LIMITS).pixels
    assert tuple(pixels[10, 10]) == (0, 0, 0)
    assert tuple(pixels[10, 60]) == (255, 255, 255)


def test_grey_with_alpha() -> None:
    """Grey with alpha is composited over white as colour is."""
    pixels = decode(encoded(Image.new("LA", (64, 64), (0, 51)), "PNG"), limits=LIMITS).pixels
    assert np.all(pixels == 204)


# ---------------------------------------------------------------- frames and claims


def test_first_page_of_several() -> None:
    """Of a document the first page is decoded, and the pages are counted."""
    rest = [Image.new("RGB", (64, 64), (0, 80 * n, 255)) for n in range(1, 4)]
    first = Image.new("RGB", (64, 64), (255, 0, 0))
    image = decode(encoded(first, "TIFF", save_all=True, append_images=rest), limits=LIMITS)
    assert image.frames == 4
    assert [frame.share for frame in image.sample] == [1.0]
    assert image.pixels[32, 32].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["gif", "webp", "apng", "tiff"])
def test_frames_are_refused_before_any_decoder_opens_the_file(name: str) -> None:
    """Counting stops at the limit while the container is walked."""
    bad = bad_files.refused()[f"frames {name}"]
    kind = identify(bad.data)
    assert kind is not None
    bounds = ContainerLimits(max_frames=50, max_metadata_bytes=2**20, max_pixels=2**24)
    with pytest.raises(TooManyFrames):
        survey(kind, bad.data, bounds)


@pytest.mark.parametrize(
    ("name", "declared_type", "key"),
    [
        ("jpeg", "image/jpg", "a.jpe"),
        ("jpeg", "IMAGE/JPEG; charset=binary", "dir.png/a.JFIF"),
        ("mpo", "image/jpeg", "a.jpg"),
        ("mpo", "image/mpo", "a.mpo"),
        ("png", "application/octet-stream", "a"),
        ("png", "binary/octet-stream", "upload.v2"),
        ("png", None, None),
        ("avif", "image/heif", "a.avif"),
        ("heif", "image/heif", "a.heic"),
        ("tiff", "image/tiff", "a.tif"),
        ("webp", "image/jpeg", "a.jpg"),
        ("heif", "image/jpeg", "a.jpeg"),
        ("avif", "image/heic", "a.heic"),
        ("jpeg", "image/vnd.adobe.photoshop", "a.psd"),
        ("png", "jpg", "a.unknown"),
        ("gif", "application/unknown", "a.webp"),
    ],
)
def test_claims_of_any_picture_pass(name: str, declared_type: str | None, key: str | None) -> None:
    """Names of a picture of any format, and names that say nothing, change nothing."""
    data = bad_files.accepted()[name]
    decode(data, limits=LIMITS, declared_type=declared_type, key=key)


def test_mismatch_names_both_kinds() -> None:
    """The refusal tells what was claimed and what the bytes are."""
    with pytest.raises(TypeMismatch, match=r"'\.html'.*PNG"):
        decode(bad_files.accepted()["png"], limits=LIMITS, key="holiday.html")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "CR3"),
        (b"II\x1a\0\0\0HEAPCCDR", "CRW"),
        (b"IIU\0\x18\0\0\0", "RW2"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"\0MRM\0\0\0\0", "MRW"),
    ],
)
def test_camera_raws_of_their_own_formats_are_refused_by_name(start: bytes, name: str) -> None:
    """A camera's own container is told from its first bytes."""
    with pytest.raises(UnsupportedFormat, match=f"camera raw \\({name}\\)"):
        decode(start + bytes(200), limits=LIMITS)


def test_right_checksum_passes() -> None:
    """A digest that fits is accepted, in capitals too."""
    data = bad_files.accepted()["png"]
    decode(data, limits=LIMITS, sha256=hashlib.sha256(data).hexdigest().upper())


# ---------------------------------------------------------------- what must stay as it is


def test_pillow_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding and refusing change none of Pillow's process-wide settings."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345_678)
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, set(Image.OPEN))
    for data in bad_files.accepted().values():
        decode(data, limits=LIMITS)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, set(Image.OPEN)) == before


def test_no_other_plugin_is_ever_loaded() -> None:
    """Even an EPS, which Pillow would hand to Ghostscript, loads no plugin beyond ours."""
    program = (
        "import sys\n"
        "from detection.intake.decode import decode\n"
        "from detection.intake.errors import UnsupportedFormat\n"
        "from tests.support.images.bad_files import LIMITS\n"
        "try:\n"
        "    decode(b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 99 99\\n', limits=LIMITS)\n"
        "except UnsupportedFormat:\n"
        "    print(*sorted(m for m in sys.modules if m.endswith('ImagePlugin')))\n"
        "print(*sorted(m for m in ('torch', 'celery', 'pillow_heif') if m in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    plugins, heavy = done.stdout.split("\n")[:2]
    assert "Eps" not in plugins
    assert heavy == ""


def test_hash_follows_the_upright_picture() -> None:
    """A picture stored turned has the hash of the picture as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture().transpose(Image.Transpose.ROTATE_90)
    stored = decode(encoded(turned, "PNG", exif=exif), limits=LIMITS)
    seen = decode(encoded(picture(), "PNG"), limits=LIMITS)
    assert hamming(stored.pdq, seen.pdq) == 0
