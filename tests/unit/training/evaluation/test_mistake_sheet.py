"""The sheet of mistakes: which images it shows, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.data.manifest import Entry
from training.evaluation.mistake_sheet import GAP, HEADING, ROW, SHOWN, SIDE, draw_mistakes

if TYPE_CHECKING:
    from pathlib import Path


def test_the_worst_of_each_side_are_shown_worst_first(tmp_path: Path) -> None:
    """Reals nearest to accusation and generated images farthest from it, each in its row."""
    entries, distances, shades = [], [], []
    for number in range(21):
        label, kind = (("real", "photograph"), ("real", "drawing"), ("generated", ""))[number % 3]
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (80, 80), (10 * number, 0, 0)).save(file)
        entries.append(
            Entry(path=file, label=label, set="s", family="", group=file.name, kind=kind)
        )
        distances.append(float(np.sin(number)))
        shades.append(10 * number)
    sheet = tmp_path / "out" / "fold.png"
    draw_mistakes(sheet, entries, np.array(distances), title="a fold")
    drawn = np.asarray(Image.open(sheet))
    for row, sign in ((0, -1), (1, -1), (2, 1)):
        members = [index for index in range(21) if index % 3 == row]
        expected = sorted(members, key=lambda index: sign * distances[index])[:SHOWN]
        y = HEADING + row * ROW + HEADING + SIDE // 2
        found = [int(drawn[y, GAP + column * (SIDE + GAP) + SIDE // 2, 0]) for column in range(5)]
        assert found == [shades[index] for index in expected]
