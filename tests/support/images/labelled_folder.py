"""A test fixture: a small folder of labelled images with a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "path\tlabel\tset\tfamily\tgroup\n"
#: Set to label and family.
SETS = {
    "lake": ("real", ""),
    "street": ("real", ""),
    "alpha1": ("generated", "alpha"),
    "alpha2": ("generated", "alpha"),
    "beta": ("generated", "beta"),
}
#: Further sets, for folds.
MORE_SETS = {"hill": ("real", ""), "gamma": ("generated", "gamma")}


def write_folder(folder: Path, *, each: int = 6, sets: tuple[str, ...] = tuple(SETS)) -> Path:
    """Write `each` smooth random images of every set: photographs JPEG 92, the rest JPEG 75."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [HEADER]
    for number, name in enumerate(sets):
        label, family = (SETS | MORE_SETS)[name]
        for index in range(each):
            rng = np.random.default_rng([number, index])
            coarse = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((96 + 4 * index, 80), Image.Resampling.BICUBIC)
            file = folder / f"{name}-{index}.jpg"
            picture.save(file, quality=92 if label == "real" else 75)
            lines.append(f"{file.name}\t{label}\t{name}\t{family}\t{name}:{index}\n")
    (folder / "manifest.tsv").write_text("".join(lines), encoding="utf-8")
    return folder
