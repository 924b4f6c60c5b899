"""Pictures of unusual shapes, and what a detector calls them: all are real, and few, so counted.

They are made of the photographs that the wheels carry: as they are, as thumbnails, as parts of a
panorama, and in a long screenshot of a page.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detection.score import Label
from training.data.samples import as_served
from worker.demo.photographs import PHOTOGRAPHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from detection.detector import Detector

    Pixels = NDArray[np.uint8]

#: Longest side of a thumbnail, height of a panorama, width of a screenshot, in pixels.
THUMBNAIL, PANORAMA, SCREEN = 200, 720, 540
#: How many times a panorama is as wide as high, and a screenshot as high as wide.
LENGTH = 4
#: The wheels' photographs from this many pixels a side on are large.
LARGE = 1000


def as_it_is(picture: Pixels) -> Pixels:
    """Leave RGB uint8 (H, W, 3) alone."""
    return picture


def thumbnail(picture: Pixels) -> Pixels:
    """Shrink RGB uint8 (H, W, 3) to at most 200 pixels a side."""
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)


def panorama(picture: Pixels) -> Pixels:
    """Lay RGB uint8 (H, W, 3) side by side with its mirror image: uint8 (720, 2880, 3)."""
    height, width = picture.shape[:2]
    scaled = Image.fromarray(picture).resize((round(width * PANORAMA / height), PANORAMA))
    pair = np.concatenate([np.asarray(scaled), np.asarray(scaled)[:, ::-1]], axis=1)
    times = -(-LENGTH * PANORAMA // pair.shape[1])
    return np.ascontiguousarray(np.tile(pair, (1, times, 1))[:, : LENGTH * PANORAMA])


def tall_screenshot(picture: Pixels) -> Pixels:
    """Show RGB uint8 (H, W, 3) on a page of text: uint8 (2160, 540, 3)."""
    page = Image.new("RGB", (SCREEN, LENGTH * SCREEN), "white")
    height, width = picture.shape[:2]
    shown = Image.fromarray(picture).resize((SCREEN - 40, round(height * (SCREEN - 40) / width)))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for row in range(24, page.height, 30):
        draw.text((20, row), f"Line {row // 30} of a page with a picture in it", "black", font)
    page.paste(shown, (20, (page.height - shown.height) // 2))
    return np.asarray(page)


SHAPES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": as_it_is,
    "thumbnail of 200 pixels": thumbnail,
    "panorama, 2880 x 720": panorama,
    "tall screenshot, 540 x 2160": tall_screenshot,
}


def count_labels(detector: Detector) -> dict[str, dict[str, int]]:
    """Count the labels of the wheels' photographs in every shape; large ones also by themselves."""
    pictures = [as_served(one.path.read_bytes())[0] for one in PHOTOGRAPHS]
    large = [one for one in pictures if max(one.shape[:2]) >= LARGE]
    series = [(name, [make(one) for one in pictures]) for name, make in SHAPES.items()]
    series.insert(1, (f"as it is, {LARGE} pixels and more", large))
    counted = {}
    for name, shaped in series:
        found = Counter(score.label for score in detector.score(shaped))
        counted[name] = {label.value: found[label] for label in Label}
    return counted
