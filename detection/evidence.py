"""Evidence: what a person can look at, in layers, and one flat picture of the same layers.

It follows the branch that decided: a map does not explain a verdict of the tiles, nor tiles that of
a map, and neither why an image was not judged. So there is a layer only of what decided, and words
only of layers that are there. docs/evidence.md is the format.
"""

from __future__ import annotations

import io
import json
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from detection.centre_square import centre_square
from detection.score import distance_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from detection.score import Score

SCHEMA_VERSION = 1
#: The names of the files of one verdict's evidence.
DOCUMENT, PREVIEW = "evidence.json", "preview.jpg"
ERROR_MAP, CONTRIBUTIONS = "error_map.png", "contributions.png"
#: Longest side of the preview, in pixels.
MAX_SIDE = 1600
# Side of the blocks in which a large picture is reduced, in pixels: bounds memory.
_BLOCK = 2048

#: Colours of the map from its low to its high end.
LOW, MIDDLE, HIGH = "midnightblue", "orangered", "lightyellow"
#: Colours of contributions, from what speaks for a camera over neither to a generator.
CAMERA, NEITHER, GENERATOR = "mediumblue", "whitesmoke", "crimson"
#: Percentiles of the image's own map at which the colours start and end.
PERCENTILES = (1, 99)
OPACITY = 0.6
#: How much of its brightness the flat picture keeps where the map holds no evidence.
OUTSIDE = 0.4
FONT_SIZE = 13
#: Each of the two pictures in the flat one is at least so wide, in pixels, caption included.
MIN_WIDTH = 240
#: A number stands in a frame that is as wide as this, in pixels.
NUMBERED = 40
GAP = 8
GENERATED_COLOUR, REAL_COLOUR = "red", "deepskyblue"

#: What each branch does, for people who never heard of it.
PARTS = {
    "backbone": "the part that looks at the picture as a whole",
    "aligned": "the part that reads small squares of the picture at full size",
    "lare": "the part that adds noise to the picture, has an image generator guess that noise, and"
    " looks at where the guess is wrong",
}


def make_evidence(pixels: NDArray[np.uint8], score: Score) -> dict[str, bytes]:
    """Make the files of a verdict on its image, uint8 (H, W, 3), by their names.

    There are a JPEG of the image, at most `MAX_SIDE` pixels a side, the picture of the branch that
    decided if it has one, and the document about them. Nothing but pixels goes into a picture.
    """
    height, width = pixels.shape[:2]
    preview, encoded = make_preview(pixels)
    layers: list[dict[str, Any]] = [
        {"kind": "preview", "file": PREVIEW, "width": preview.width, "height": preview.height}
    ]
    files = {PREVIEW: encoded}
    if score.outside is None and score.decided_by == "aligned" and score.tiles:
        layers.append(_tiles_layer(score))
    if score.outside is None and score.decided_by == "lare" and score.error_map is not None:
        coloured, ends = _coloured(score.error_map)
        files[ERROR_MAP] = _encoded(coloured, "PNG")
        layers.append(_map_layer(coloured, ends, centre_square(height, width)))
    if score.outside is None and score.decided_by == "backbone" and score.contributions is not None:
        coloured, ends = _diverging(score.contributions)
        files[CONTRIBUTIONS] = _encoded(coloured, "PNG")
        layers.append(_contributions_layer(score, coloured, ends, centre_square(height, width)))
    document = {
        "schema_version": SCHEMA_VERSION,
        "label": score.label.value,
        "decided_by": score.decided_by if score.outside is None else None,
        "picture": {"width": width, "height": height, "frame": score.frame},
        "caption": describe(score),
        "layers": layers,
    }
    return files | {DOCUMENT: json.dumps(document, indent=1).encode()}


def make_preview(pixels: NDArray[np.uint8]) -> tuple[Image.Image, bytes]:
    """Make the clean picture of uint8 (H, W, 3), at most `MAX_SIDE` pixels a side, and its JPEG."""
    preview = shrink(pixels, MAX_SIDE)
    return preview, _encoded(preview, "JPEG", quality=90, subsampling=0)


def describe(score: Score) -> list[str]:
    """Say in sentences what the detector says and which part of it counted most."""
    said = f'The detector says "{score.label.value}"'
    if score.outside is not None:
        return [f"{said}.", f"Nothing can be told of such a picture ({score.outside})."]
    words = distance_words(score.label.value, score.distance, None)
    if words is None:
        said += "."
    else:
        said += (
            f': {words} the point of accusation, from which on it says "generated"'
            f" (distance {score.distance:+.1f})."
        )
    part = PARTS.get(score.decided_by, f'the part named "{score.decided_by}"')
    return [said, f"What counted most: {part}."]


def captions(files: Mapping[str, bytes]) -> list[str]:
    """Return the sentences of an evidence's document, those of every layer among them."""
    document = json.loads(files[DOCUMENT])
    own = [layer["caption"] for layer in document["layers"] if "caption" in layer]
    return [*document["caption"], *own]


def shrink(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """Scale uint8 (H, W, 3) so that its longer side is at most `side`, averaging over areas.

    A large image is reduced in blocks: Pillow would copy the whole of it, at four bytes a pixel.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= side:
        return Image.fromarray(pixels)
    factor = longest // side
    step = max(1, _BLOCK // factor) * factor
    lefts, tops = range(0, width, step), range(0, height, step)
    rows = [
        np.concatenate([_reduced(pixels[y : y + step, x : x + step], factor) for x in lefts], 1)
        for y in tops
    ]
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    # The last row and column may stand for less than the others.
    box = (0, 0, width / factor, height / factor)
    return Image.fromarray(np.concatenate(rows)).resize(size, Image.Resampling.LANCZOS, box=box)


def _reduced(block: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(block).reduce(factor))


def error_at_image_scale(
    error_map: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    """Place a LaRE map (h, w) where its view lay on the image.

    Returns float32 (height, width): each cell's error, repeated over the pixels it was computed
    from, and NaN outside the centre square, where there is no evidence.
    """
    left, top, square, _ = centre_square(height, width)
    placed = np.full((height, width), np.nan, dtype=np.float32)
    scaled = Image.fromarray(error_map).resize((square, square), Image.Resampling.NEAREST)
    placed[top : top + square, left : left + square] = np.asarray(scaled)
    return placed


# Layers -------------------------------------------------------------------------------------------


def _tiles_layer(score: Score) -> dict[str, Any]:
    count, mean = len(score.tiles), score.branches["aligned"]
    squares = "the square" if count == 1 else f"the {count} squares"
    caption = (
        f"Frames: {squares} that it read; it read nothing else. The higher the number, the more"
        " generated the square looks to it (red above 0, blue below). Their average,"
        f" {mean:+.2f}, is what counted."
    )
    tiles = [tile.as_dict() for tile in score.tiles]
    return {"kind": "tiles", "caption": caption, "tiles": tiles}


def _map_layer(coloured: Image.Image, ends: Sequence[float], box: Sequence[int]) -> dict[str, Any]:
    return {
        "kind": "error_map",
        "caption": (
            "Colours: how wrong the guess is, from dark blue (least) over red to light yellow"
            " (most), within this picture only. Outside the coloured square nothing was looked at"
            " for this."
        ),
        "file": ERROR_MAP,
        "width": coloured.width,
        "height": coloured.height,
        "box": list(box),
        "range": list(ends),
    }


def _contributions_layer(
    score: Score, coloured: Image.Image, ends: Sequence[float], box: Sequence[int]
) -> dict[str, Any]:
    return {
        "kind": "contributions",
        "caption": (
            "Colours: what each part of the picture looks like with its surroundings alone. Red"
            " speaks for a generator, blue for a camera. The average over the square,"
            f" {score.branches['backbone']:+.2f}, is what counted. Outside the coloured square"
            " nothing was looked at for this."
        ),
        "file": CONTRIBUTIONS,
        "width": coloured.width,
        "height": coloured.height,
        "box": list(box),
        "range": list(ends),
    }


def _diverging(contributions: NDArray[np.float32]) -> tuple[Image.Image, tuple[float, float]]:
    """Colour a map about 0, one pixel a cell; return it with the values at the ends."""
    end = max(float(np.percentile(np.abs(contributions), PERCENTILES[1])), 1e-6)
    levels = (contributions / end + 1) / 2
    grey = Image.fromarray((levels.clip(0, 1) * 255).astype(np.uint8))
    return ImageOps.colorize(grey, CAMERA, GENERATOR, NEITHER), (-end, end)


def _coloured(error_map: NDArray[np.float32]) -> tuple[Image.Image, tuple[float, float]]:
    """Colour a map, one pixel a cell; return it with the values at the ends of the colours."""
    low, high = (float(value) for value in np.percentile(error_map, PERCENTILES))
    levels = (error_map - low) / max(high - low, 1e-12)
    grey = Image.fromarray((levels.clip(0, 1) * 255).astype(np.uint8))
    return ImageOps.colorize(grey, LOW, HIGH, MIDDLE), (low, high)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


# The flat picture ---------------------------------------------------------------------------------


def flat_picture(files: Mapping[str, bytes]) -> bytes:
    """Draw evidence as one PNG: the clean picture, the same under its layers, the captions below.

    Where nothing is drawn over it, the clean picture stands alone. The captions are also the PNG's
    `Description`.
    """
    lines = captions(files)
    clean, drawn = clean_and_drawn(files, MAX_SIDE)
    column = max(clean.width, MIN_WIDTH)
    caption = _caption(lines, 2 * column + GAP)
    canvas = Image.new("RGB", (caption.width, clean.height + caption.height), "white")
    canvas.paste(clean, (0, 0))
    if drawn is not None:
        canvas.paste(drawn, (column + GAP, 0))
    canvas.paste(caption, (0, clean.height))
    text = PngInfo()
    text.add_itxt("Description", "\n".join(lines))
    return _encoded(canvas, "PNG", pnginfo=text, compress_level=3)


def clean_and_drawn(
    files: Mapping[str, bytes], side: int
) -> tuple[Image.Image, Image.Image | None]:
    """Return the preview, at most `side` pixels a side, and the same under its layers, if any."""
    document = json.loads(files[DOCUMENT])
    preview = _opened(files[PREVIEW])
    preview.thumbnail((side, side), Image.Resampling.LANCZOS)
    scale = max(preview.size) / max(document["picture"]["width"], document["picture"]["height"])
    drawn = None
    for layer in document["layers"]:
        if layer["kind"] in {"error_map", "contributions"}:
            corners = _scaled(layer["box"], scale, preview)
            drawn = _blended(preview, _opened(files[layer["file"]]), corners)
        if layer["kind"] == "tiles":
            drawn = _framed(preview, layer["tiles"], scale)
    return preview, drawn


def _opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
        return picture.convert("RGB")


def _scaled(box: Sequence[int], scale: float, picture: Image.Image) -> tuple[int, int, int, int]:
    """Turn a box of the original into the corners of one on a picture: left, top, right, bottom.

    However small the picture is, it has a pixel at least.
    """
    left, right = _span(box[0], box[2], scale, picture.width)
    top, bottom = _span(box[1], box[3], scale, picture.height)
    return left, top, right, bottom


def _span(begin: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    first = min(round(begin * scale), limit - 1)
    return first, max(first + 1, min(round((begin + length) * scale), limit))


def _blended(
    picture: Image.Image, coloured: Image.Image, corners: tuple[int, int, int, int]
) -> Image.Image:
    left, top, right, bottom = corners
    scaled = coloured.resize((right - left, bottom - top), Image.Resampling.NEAREST)
    mixed = Image.blend(picture.crop(corners), scaled, OPACITY)
    dark = picture.point(lambda value: int(value * OUTSIDE))
    dark.paste(mixed, (left, top))
    return dark


def _framed(picture: Image.Image, tiles: Sequence[Mapping[str, Any]], scale: float) -> Image.Image:
    framed = picture.copy()
    draw = ImageDraw.Draw(framed)
    font = ImageFont.load_default(FONT_SIZE)
    for tile in tiles:
        colour = GENERATED_COLOUR if tile["logit"] > 0 else REAL_COLOUR
        left, top, right, bottom = _scaled(tile["box"], scale, picture)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)
        if right - left >= NUMBERED:
            at = (left + 4, top + 2)
            number = f"{tile['logit']:+.1f}"
            draw.text(at, number, "white", font, stroke_width=2, stroke_fill="black")
    return framed


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
