"""The list of labelled images that training and evaluation read: `manifest.tsv` beside the files.

Required columns: `path`, `label` (`real` | `generated`), `set`. Optional: `family` (the autoencoder
family of a generator), `kind` (what a real picture is: `photograph`, `drawing`, `screenshot`, …),
`source` (who took or collected a picture) and `group` (prompt, scene or person: images that must
share a side of every split). Where they are missing, families and groups are derived from the set
and the file name, the source is the set, and real pictures are photographs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

REAL = "real"
GENERATED = "generated"
PHOTOGRAPH = "photograph"

#: Sets whose decoders come from one release share a family: seeing one is having seen them all.
FAMILY_OF_SET = {
    "sd1": "sd-kl",
    "sd1-finetune": "sd-kl",
    "sd2": "sd-kl",
    "pixart-alpha": "sd-kl",
    "ldm-text2img": "ldm-kl",
    "glid3-xl": "ldm-kl",
    "kandinsky3": "movq",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One labelled image; `family` is empty for real images, `kind` for generated ones.

    `weight` says how many images of its set it stands for: see `sampling_weights`. `audited` marks
    a photograph that a random audit drew from what a champion let through.
    """

    path: Path
    label: str
    set: str
    family: str
    group: str
    kind: str = ""
    source: str = ""
    weight: float = 1.0
    audited: bool = False

    @property
    def generated(self) -> bool:
        """Whether the image came out of a generator."""
        return self.label == GENERATED

    @property
    def photograph(self) -> bool:
        """Whether a camera took the picture."""
        return self.kind == PHOTOGRAPH


def sampling_weights(entries: Sequence[Entry]) -> NDArray[np.float64]:
    """Return what each image counts in calibration (N,), by how its set was sampled.

    The photographs of a set weigh together as many as they are here, and so do its generated
    images. The random audit may draw one image in 200 of one source while every photograph of a
    trusted one is here: weighed against each other, a handful of the former would be all that
    counts.
    """
    weights = np.array([entry.weight for entry in entries], dtype=np.float64)
    strata = np.array([f"{entry.label} {entry.set}" for entry in entries])
    for stratum in set(strata.tolist()):
        weights[strata == stratum] /= weights[strata == stratum].mean()
    return weights


def load_manifest(folder: Path) -> list[Entry]:
    """Read `folder/manifest.tsv`.

    Raises `SettingsError` when the file or a required column is missing or a label is unknown.
    """
    file = folder / "manifest.tsv"
    if not file.is_file():
        raise SettingsError(f"{folder} has no manifest.tsv: expected columns path, label, set")
    with file.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    if not rows:
        raise SettingsError(f"{file} lists no images")
    missing = {"path", "label", "set"} - rows[0].keys()
    if missing:
        raise SettingsError(f"{file} lacks the column(s) {', '.join(sorted(missing))}")
    return [_entry(folder, file, row) for row in rows]


def _entry(folder: Path, file: Path, row: dict[str, str]) -> Entry:
    label, set_ = row["label"], row["set"]
    if label not in {REAL, GENERATED}:
        raise SettingsError(f"{file}: {row['path']} has the label {label!r}, not real or generated")
    family = "" if label == REAL else row.get("family") or FAMILY_OF_SET.get(set_, set_)
    return Entry(
        path=folder / row["path"],
        label=label,
        set=set_,
        family=family,
        group=row.get("group") or _group(label, set_, Path(row["path"]).stem),
        kind="" if label == GENERATED else row.get("kind") or PHOTOGRAPH,
        source=row.get("source") or set_,
    )


def _group(label: str, set_: str, stem: str) -> str:
    """Derive what must stay together: the prompt of a generated image, the scene of a real one."""
    if label == REAL:
        # dreambooth holds several views of one object: backpack__01, backpack__02, …
        return f"{set_}:{stem.split('__', maxsplit=1)[0] if set_ == 'dreambooth' else stem}"
    if numbered := re.fullmatch(r"(\d+)__.+", stem):
        return f"promptlist-a:{numbered[1]}"
    if numbered := re.fullmatch(r".+__(\d+)", stem):
        return f"promptlist-b:{numbered[1]}"
    return f"prompt:{stem.split('__', maxsplit=1)[0]}"


def listing_digest(entries: Sequence[Entry]) -> str:
    """Digest of a manifest as a run reads it: every image's content and columns, in their order."""
    lines = [
        json.dumps(
            [
                hashlib.sha256(entry.path.read_bytes()).hexdigest(),
                *(value for name, value in asdict(entry).items() if name != "path"),
            ]
        )
        for entry in entries
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def snapshot_digest(entries: Sequence[Entry]) -> str:
    """Digest of what was in the data: the label and content of every image, in a fixed order."""
    lines = sorted(
        f"{entry.label} {hashlib.sha256(entry.path.read_bytes()).hexdigest()}" for entry in entries
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
