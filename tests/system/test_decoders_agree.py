"""Every layout that intake takes against a second decoder: a browser, or libvips for TIFF and HEIF.

The second decoder is not right everywhere. `_EXCEPTIONS` says where it is not and why, and then
the picture itself, as it was before it was encoded, is what the pixels are held against.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.intake.decode import IntakeLimits, decode
from detection.intake.errors import UnsupportedFormat
from tests.support.images.layouts import browser_layouts, heif_layouts, levels, tiff_layouts
from tests.support.system_packages import program

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Pictures = dict[str, NDArray[np.uint8] | None]

_LIMITS = IntakeLimits(max_bytes=2**20, max_pixels=2**20, max_frames=10, max_metadata_bytes=2**20)
# Levels of 255 by which decoders that are right differ: rounding, and upsampling of chroma.
_TOLERANCE = 2
# Mean levels by which codecs move the picture that was made; another picture is 20 and more away.
_CODEC_TOLERANCE = 8
# Refused by both sides' choice: the layout's name, and a word of the reason.
_REFUSED = {
    r"tiff .* big MM": "BigTIFF",
    r"tiff grey alpha .*planes": "planes of their own",
    r"tiff grey alpha 16": "layout that is not checked",
}
# Where the second decoder does not show the picture as it is, and why.
_EXCEPTIONS = {
    r"bmp (56|108|124) alpha zero": "Chromium shows a blank page where Windows shows the picture",
    r"avif alpha": "Chromium reads alpha of full range as of video range; libavif does not",
    r"png gamma and usual primaries": "libpng and intake call this sRGB; Chromium takes it exactly",
    r"tiff cmyk": "libvips assumes a printing press; intake, as browsers do, plain inks",
    r"tiff colour unused": "libvips takes a sample that the file calls unspecified for alpha",
    r"tiff .* tiles.* planes": "libvips does not read tiles in planes",
    r"tiff ycbcr": "libvips does not read YCbCr without compression",
}
# Brighter than a screen of standard range: each viewer compresses highlights in its own way.
_TONE_MAPPED = r"code points \d+ (16|18)$"


def _named(patterns: dict[str, str], name: str) -> str | None:
    return next((why for pattern, why in patterns.items() if re.match(pattern, name)), None)


def _over_white(image: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return np.asarray(white.convert("RGB"))


@pytest.fixture(scope="module")
def in_browser(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """What Chromium paints of each file on a white canvas in sRGB."""
    folder = tmp_path_factory.mktemp("browser")
    files = browser_layouts()
    images = "".join(
        f'<img src="data:;base64,{base64.b64encode(data).decode()}">' for data in files.values()
    )
    script = """
        onload = () => {
            const painted = [...document.images].map((image) => {
                if (!image.naturalWidth) return null
                const canvas = document.createElement("canvas")
                canvas.width = image.naturalWidth
                canvas.height = image.naturalHeight
                const context = canvas.getContext("2d")
                context.fillStyle = "white"
                context.fillRect(0, 0, canvas.width, canvas.height)
                context.drawImage(image, 0, 0)
                return canvas.toDataURL("image/png").split(",")[1]
            })
            document.body.textContent = JSON.stringify(painted)
        }"""
    page = folder / "page.html"
    page.write_text(f"<body>{images}<script>{script}</script>")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb")
    done = subprocess.run(
        [program("chromium"), *options, f"--user-data-dir={folder}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r"\[.*\]", done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    painted = [
        None if picture is None else _over_white(Image.open(io.BytesIO(base64.b64decode(picture))))
        for picture in json.loads(found[0])
    ]
    return dict(zip(files, painted, strict=True))


@pytest.fixture(scope="module")
def in_libvips(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """What libvips writes of each file as PNG; None where it reads nothing."""
    folder = tmp_path_factory.mktemp("libvips")
    files = tiff_layouts() | heif_layouts()
    for number, data in enumerate(files.values()):
        (folder / f"{number}.in").write_bytes(data)
    # "200>" never enlarges: sizes stay, and so do the pixels.
    subprocess.run(
        [program("vipsthumbnail"), "--size", "200x200>", "--output", "%s.png"]
        + [f"{number}.in" for number in range(len(files))],
        cwd=folder,
        capture_output=True,
        check=False,  # it says so of every file that it does not read
        timeout=120,
    )
    return {name: _opened(folder / f"{number}.png") for number, name in enumerate(files)}


def _opened(path: Path) -> NDArray[np.uint8] | None:
    try:
        return _over_white(Image.open(path))
    except OSError:
        return None


def _as_made(name: str) -> NDArray[np.float64]:
    """The picture before it was encoded, over white where the layout has alpha."""
    picture = levels()
    if re.search(r" alpha(?! zero)| premultiplied", name):
        alpha = np.tile(np.linspace(0, 1, picture.shape[1]), (len(picture), 1))[..., None]
        picture = picture * alpha + 1 - alpha
    if "grey" in name:
        picture = np.repeat((picture @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=-1)
    return 255 * picture


def _check(name: str, data: bytes, other: NDArray[np.uint8] | None) -> None:
    reason = _named(_REFUSED, name)
    if reason is not None:
        with pytest.raises(UnsupportedFormat, match=reason):
            decode(data, limits=_LIMITS)
        return
    pixels = decode(data, limits=_LIMITS).pixels.astype(int)
    if re.search(_TONE_MAPPED, name):
        assert other is not None
        order = np.corrcoef(pixels.ravel(), other.ravel())[0, 1]
        assert order > 0.9, "the second decoder shows another picture"
        return
    exception = _named(_EXCEPTIONS, name)
    wanted = _as_made(name) if exception is not None else other
    assert wanted is not None, "the second decoder shows nothing"
    difference = np.abs(pixels - wanted)
    if exception is None:
        assert difference.max() <= _TOLERANCE, f"mean {difference.mean():.2f}"
        return
    assert difference.mean() <= _CODEC_TOLERANCE, exception
    assert other is None or np.abs(pixels - other).max() > _TOLERANCE, "no exception any more"


@pytest.mark.parametrize("name", browser_layouts())
def test_a_browser_shows_the_same_pixels(name: str, in_browser: Pictures) -> None:
    """PNG, JPEG, GIF, WebP, AVIF and BMP of every layout are judged as Chromium shows them."""
    _check(name, browser_layouts()[name], in_browser[name])


@pytest.mark.parametrize("name", tiff_layouts() | heif_layouts())
def test_libvips_reads_the_same_pixels(name: str, in_libvips: Pictures) -> None:
    """TIFF and HEIF of every layout are judged as libvips reads them."""
    files = tiff_layouts() | heif_layouts()
    _check(name, files[name], in_libvips[name])
