"""Shortcut features (nuisances): what a file says besides its picture: container, size, blocks.

Groups of figures a file: `container` (format, mode, profile, scan), `tables` (JPEG quantisation),
`size`, `blockiness` (steps on the 8-pixel grid, by phase), `sharpness` and `colour`. The number of
bytes a pixel is left out: under one codec it repeats the sharpness.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter, JpegImagePlugin, UnidentifiedImageError

from training.data.originals import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from training.data.manifest import Entry

    Pixels = NDArray[np.uint8]
    Plane = NDArray[np.float64]

FORMATS = ("JPEG", "PNG", "WEBP")
#: JPEG codes blocks of 8 x 8 pixels.
BLOCK = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a data set; the two sides of a pair share `group`."""

    name: str
    data: bytes
    generated: bool
    group: str
    source: str = ""


def source_files(entries: Iterable[Entry]) -> Iterator[SourceFile]:
    """Read the files of a manifest, one at a time."""
    for entry in entries:
        yield SourceFile(
            name=entry.path.name,
            data=entry.path.read_bytes(),
            generated=entry.generated,
            group=entry.group,
            source=entry.set,
        )


@dataclass(frozen=True, slots=True)
class ShortcutFeatures:
    """The figures of one file by group, and its pixels, RGB uint8 (H, W, 3)."""

    groups: dict[str, list[float]]
    pixels: Pixels
    kind: str

    def without_pixels(self) -> ShortcutFeatures:
        """Return the figures alone: a data set's pixels do not fit into memory."""
        # Not a slice, which would keep all of them.
        return replace(self, pixels=np.empty((0, 0, 3), np.uint8))


def read_shortcut_features(file: SourceFile) -> ShortcutFeatures:
    """Measure one file; raises `Unreadable` naming it."""
    try:
        with Image.open(io.BytesIO(file.data)) as image:
            container, tables = _container(image), _tables(image)
            kind = image.format or ""
            pixels = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise Unreadable(f"{file.name} cannot be decoded: {error}") from error
    height, width = pixels.shape[:2]
    luma = luminance(pixels)
    groups = {
        "container": container,
        "tables": tables,
        "size": [width, height, width / height, width % BLOCK, height % BLOCK],
        "blockiness": [*grid_steps(luma), *grid_steps(luma.T)],
        "sharpness": sharpness(luma),
        "colour": colour(pixels),
    }
    return ShortcutFeatures(groups, pixels, kind)


def _container(image: Image.Image) -> list[float]:
    known = [float(image.format == name) for name in FORMATS]
    profile, exif = "icc_profile" in image.info, "exif" in image.info
    progressive = bool(image.info.get("progressive"))
    sampling = JpegImagePlugin.get_sampling(image) if image.format == "JPEG" else -1
    modes = [float(image.mode == mode) for mode in ("RGB", "RGBA", "L", "P")]
    return [*known, *modes, float(profile), float(exif), float(progressive), float(sampling)]


def _tables(image: Image.Image) -> list[float]:
    found = getattr(image, "quantization", None)
    if not found:
        return [0.0] * 7
    figures = [float(len(found))]
    for number in (0, 1):
        table = np.asarray(found.get(number, found[0]), dtype=np.float64)
        figures += [float(table[0]), float(table.mean()), float(table[-1])]
    return figures


def luminance(pixels: Pixels) -> Plane:
    """Luminance of RGB uint8 (H, W, 3): float64 (H, W) in [0, 255], weights of ITU-R BT.601."""
    weighted: Plane = pixels @ np.array([0.299, 0.587, 0.114])
    return weighted


def grid_steps(luma: Plane) -> list[float]:
    """Relative strength of the steps between columns, by their phase on the 8-pixel grid (8,).

    A step is the second difference across a column border, so that a smooth slope has none; a JPEG
    that was cut on its grid is strong at phase 7, one cut a pixel off at phase 6.
    """
    steps = np.abs(luma[:, 3:] - 3 * luma[:, 2:-1] + 3 * luma[:, 1:-2] - luma[:, :-3])
    profile = np.minimum(steps, 48.0).mean(axis=0)
    phases = (np.arange(len(profile)) + 1) % BLOCK
    means = np.array([profile[phases == phase].mean() for phase in range(BLOCK)])
    return [float(value) for value in means / (means.mean() + 1e-6) - 1]


def sharpness(luma: Plane) -> list[float]:
    """Log energy of the Laplacian and of first differences over one and four pixels."""
    laplacian = (
        4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    )
    near, far = luma[:, 1:] - luma[:, :-1], luma[:, 4:] - luma[:, :-4]
    return [float(np.log1p((values**2).mean())) for values in (laplacian, near, far)]


def colour(pixels: Pixels) -> list[float]:
    """Mean and spread of each channel, quantiles of the luminance, saturation, clipped shares."""
    flat = pixels.reshape(-1, 3)
    spread = flat.max(axis=1) - flat.min(axis=1)
    return [
        *flat.mean(axis=0).tolist(),
        *flat.std(axis=0).tolist(),
        *np.quantile(luminance(pixels), QUANTILES).tolist(),
        float(spread.mean()),
        float((flat == 0).mean()),
        float((flat == 255).mean()),
    ]


@dataclass(frozen=True, slots=True)
class PairDifference:
    """How far the second picture of a pair lies from the first: pixels (down, right), grey levels.

    `tone` holds the differences of the channel means and of the luminance's quantiles.
    """

    shift: tuple[float, float]
    tone: tuple[float, ...]


def measure_pair_difference(first: Pixels, second: Pixels) -> PairDifference:
    """Measure the displacement and the change of tone between pictures of one size.

    The displacement is the least-squares solution of the optical-flow equation with one vector for
    the whole picture (Lucas and Kanade, IJCAI 1981), on blurred luminance of equal mean.
    """
    tone = np.r_[
        second.mean(axis=(0, 1)) - first.mean(axis=(0, 1)),
        np.quantile(luminance(second), QUANTILES) - np.quantile(luminance(first), QUANTILES),
    ]
    one, other = _smoothed(first), _smoothed(second)
    down, right = np.gradient((one + other) / 2)
    change = one - other
    matrix = np.array([[(down**2).sum(), (down * right).sum()], [0, (right**2).sum()]])
    matrix[1, 0] = matrix[0, 1]
    matrix += np.eye(2) * 1e-3
    moved = np.linalg.solve(matrix, np.array([(down * change).sum(), (right * change).sum()]))
    return PairDifference((float(moved[0]), float(moved[1])), tuple(float(value) for value in tone))


def _smoothed(pixels: Pixels) -> Plane:
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))
    luma = luminance(np.asarray(blurred))
    centred: Plane = luma - luma.mean()
    return centred


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDifferences:
    """Medians over the pairs: displacement (pixels), largest change of tone (grey levels).

    `resized` counts pairs whose sides differ in size; they have neither.
    """

    pairs: int
    resized: int
    shift_px: float
    tone_levels: float


class PairSides:
    """Lays the sides of each pair over each other as soon as both have been read."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[bool, NDArray[np.uint8]]] = {}
        self._drifts: list[PairDifference] = []
        self._resized = 0

    def add(self, file: SourceFile, found: ShortcutFeatures) -> None:
        """Take one side; a group of more than one real and one generated image is no pair."""
        other = self._waiting.pop(file.group, None)
        if other is None or other[0] == file.generated:
            self._waiting[file.group] = (file.generated, found.pixels)
            return
        real, generated = (other[1], found.pixels) if file.generated else (found.pixels, other[1])
        if real.shape != generated.shape:
            self._resized += 1
        else:
            self._drifts.append(measure_pair_difference(real, generated))

    def measured(self) -> PairDifferences | None:
        """Return the medians, or None without pairs."""
        total = self._resized + len(self._drifts)
        if not total:
            return None
        shifts = np.array([one.shift for one in self._drifts] or [(0.0, 0.0)])
        tones = np.array([one.tone for one in self._drifts] or [(0.0,)])
        return PairDifferences(
            pairs=total,
            resized=self._resized,
            shift_px=float(np.abs(np.median(shifts, axis=0)).max()),
            tone_levels=float(np.abs(np.median(tones, axis=0)).max()),
        )
