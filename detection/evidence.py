"""Evidence pictures: error map, tiles and caption over a copy of the image.

The LaRE map covers the centre square of the shorter side and nothing else; the aligned branch reads
tiles. A map does not explain a verdict that the tiles decided, so the caption names the branch and
the picture shows both kinds of evidence, each only where there is some.
"""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from detection.score import describe_distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from detection.detector import TileLogit
    from detection.score import Score

#: Colours of the map from its low to its high end.
LOW, MIDDLE, HIGH = "midnightblue", "orangered", "lightyellow"
#: Percentiles of the image's own map at which the colours start and end.
PERCENTILES = (1, 99)
OPACITY = 0.6
#: How much of its brightness the image keeps where the map holds no evidence.
OUTSIDE = 0.4
FONT_SIZE = 13
MIN_WIDTH = 360
GENERATED_COLOUR, REAL_COLOUR = "red", "deepskyblue"


def error_at_image_scale(
    error_map: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    """Place a LaRE map (h, w) where its view lay on the image.

    Returns float32 (height, width): each cell's error, repeated over the pixels it was computed
    from, and NaN outside the centre square, where there is no evidence.
    """
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    placed = np.full((height, width), np.nan, dtype=np.float32)
    scaled = Image.fromarray(error_map).resize((square, square), Image.Resampling.NEAREST)
    placed[top : top + square, left : left + square] = np.asarray(scaled)
    return placed


def describe(score: Score, tiles: Sequence[TileLogit] = ()) -> list[str]:
    """Say in lines of text what was decided, by which branch, and what the colours mean."""
    logits = ", ".join(f"{name} {value:+.2f}" for name, value in sorted(score.branches.items()))
    verdict = describe_distance(score.label.value, score.distance, score.outside)
    away = "" if score.distance is None else " from the point of accusation"
    lines = [
        f"{verdict}{away}; label at {score.operating_point}.",
        f"Decided by the {score.decided_by} branch. Branch logits: {logits}.",
    ]
    if score.outside is not None:
        lines.append(f"Outside what the thresholds hold for: {score.outside}.")
    if score.error_map is not None:
        low, high = np.percentile(score.error_map, PERCENTILES)
        lines.append(
            f"Colours: latent reconstruction error from {low:.3g} (dark blue) over red to"
            f" {high:.3g} (light yellow), percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of this"
            " image. Darkened: not part of the map."
        )
    if tiles:
        lines.append("Frames: tiles of the aligned branch with their logits, red above 0.")
    if score.decided_by == "aligned" and score.error_map is not None:
        lines.append("The error map does not explain this verdict; the tiles do.")
    return lines


def overlay(image: NDArray[np.uint8], score: Score, tiles: Sequence[TileLogit] = ()) -> bytes:
    """Draw the evidence of one verdict over its image, uint8 (H, W, 3), as a PNG.

    The upper left (H, W) pixels are the image at its own scale, the caption stands below; its text
    is also the PNG's `Description`. `tiles` come from `Detector.tile_logits`.
    """
    height, width = image.shape[:2]
    lines = describe(score, tiles)
    picture = Image.fromarray(image)
    if score.error_map is not None:
        picture = _blend(image, error_at_image_scale(score.error_map, height, width))
    _frame(picture, tiles)
    caption = _caption(lines, max(width, MIN_WIDTH))
    canvas = Image.new("RGB", (caption.width, height + caption.height), "white")
    canvas.paste(picture, (0, 0))
    canvas.paste(caption, (0, height))
    text = PngInfo()
    text.add_itxt("Description", "\n".join(lines))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", pnginfo=text, compress_level=3)
    return buffer.getvalue()


def _blend(image: NDArray[np.uint8], errors: NDArray[np.float32]) -> Image.Image:
    inside = ~np.isnan(errors)
    low, high = np.percentile(errors[inside], PERCENTILES)
    levels = (np.nan_to_num(errors, nan=low) - low) / max(float(high - low), 1e-12)
    grey = Image.fromarray((levels.clip(0, 1) * 255).astype(np.uint8))
    coloured = np.asarray(ImageOps.colorize(grey, LOW, HIGH, MIDDLE), np.float32)
    pixels = image.astype(np.float32)
    mixed = np.where(
        inside[..., None], OPACITY * coloured + (1 - OPACITY) * pixels, OUTSIDE * pixels
    )
    return Image.fromarray(mixed.astype(np.uint8))


def _frame(picture: Image.Image, tiles: Sequence[TileLogit]) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)
    for tile in tiles:
        colour = GENERATED_COLOUR if tile.logit > 0 else REAL_COLOUR
        box = (tile.left, tile.top, tile.left + tile.width - 1, tile.top + tile.height - 1)
        draw.rectangle(box, outline=colour, width=2)
        at = (tile.left + 4, tile.top + 2)
        draw.text(at, f"{tile.logit:+.1f}", colour, font, stroke_width=2, stroke_fill="black")


def _caption(lines: Sequence[str], width: int) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    columns = int((width - 8) / font.getlength("n"))
    wrapped = [part for line in lines for part in textwrap.wrap(line, columns)]
    spacing = FONT_SIZE + 4
    strip = Image.new("RGB", (width, spacing * len(wrapped) + 8), "white")
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(wrapped):
        draw.text((4, 4 + row * spacing), line, "black", font)
    return strip
