"""A contact sheet of the worst mistakes: what a detector accuses wrongly, and what it misses most.

Figures say how often a detector is wrong, pictures say about what. A sheet shows images of the data
and belongs beside the run, never into a bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from training.data.samples import read_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Entry

SIDE = 192
GAP = 12
TEXT = 40
HEADING = 34
#: Images a row shows.
SHOWN = 5
ROW = HEADING + SIDE + TEXT


def draw_mistakes(
    file: Path, entries: Sequence[Entry], distances: NDArray[np.float64], *, title: str
) -> None:
    """Draw three rows as PNG: photographs and other reals most accused, generated least.

    `distances` (N,) are how far the fused logits lie beyond the point of accusation: above 0 the
    label is `generated`.
    """
    generated = np.array([entry.generated for entry in entries])
    photographs = np.array([entry.photograph for entry in entries])
    rows = (
        ("Photographs nearest to accusation, or beyond it", photographs, -1),
        ("Other real pictures nearest to accusation, or beyond it", ~generated & ~photographs, -1),
        ("Generated images missed most", generated, 1),
    )
    size = (SHOWN * (SIDE + GAP) + GAP, HEADING + len(rows) * ROW)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), title, "black", ImageFont.load_default(18))
    for number, (heading, chosen, sign) in enumerate(rows):
        top = HEADING + number * ROW
        draw.text((GAP, top + 8), heading, "black", ImageFont.load_default(15))
        places = np.flatnonzero(chosen)
        worst = places[np.argsort(sign * distances[places], kind="stable")][:SHOWN]
        for column, index in enumerate(worst):
            left, entry = GAP + column * (SIDE + GAP), entries[index]
            picture = Image.fromarray(read_pixels(entry)[0])
            sheet.paste(ImageOps.pad(picture, (SIDE, SIDE), color="#ececee"), (left, top + HEADING))
            words = f"{distances[index]:+.2f}  {entry.set}\n{entry.path.stem[:26]}"
            place = (left, top + HEADING + SIDE + 3)
            draw.multiline_text(place, words, "#444444", ImageFont.load_default(12))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, "PNG")
