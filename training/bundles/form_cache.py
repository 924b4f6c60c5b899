"""What a network says of images in several forms, computed once an image and form, kept on disk.

A form is what happened to the picture before it is read: nothing, a tier, or a draw of the
augmentation. What is kept are rows of numbers: features of a frozen backbone, or a thumbnail.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from detection.bundle import sha256_of
from training.data.augmentation import sample_crop
from training.data.samples import read_pixels, upload_codec
from training.evaluation.robustness_tiers import TIERS
from training.evaluation.scoring import RAW, harmonised, untouched
from training.files import written_aside
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.augmentation import AugmentationConfig
    from training.data.manifest import Entry

    Pixels = NDArray[np.uint8]
    Rows = NDArray[np.float32]

#: Images of one part: a run that is killed loses the part it was at.
PART = 200
BATCH = 16
#: Forms whose name starts so are draws of the augmentation; what follows is the draw's number.
AUGMENTED = "augmented-"

_log = structlog.get_logger(__name__)


def draw_whole(
    pixels: Pixels, rng: np.random.Generator, augmentation: AugmentationConfig, *, lossy: bool
) -> Pixels:
    """Draw the augmentation of a whole picture, RGB uint8 (H, W, 3), mirrored half of the time.

    What is not a generator's JPEG already (`lossy`) is first saved as one.
    """
    first = None if lossy else upload_codec(rng)
    drawn = sample_crop(rng, pixels.shape, augmentation, first=first)
    distorted = drawn.distort(pixels)
    return np.ascontiguousarray(distorted[:, ::-1]) if drawn.flip else distorted


class FormCache:
    """Rows by form, label and sha256 of the file, in parts of a folder.

    The label counts because it decides how an image's codec is harmonised. The folder belongs to
    one network and one augmentation. `read` maps pictures, RGB uint8 (H, W, 3), to a row each.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[Sequence[Pixels]], list[Rows]],
        augmentation: AugmentationConfig,
    ) -> None:
        self._folder, self._reader, self._augmentation = folder, read, augmentation
        self._digests: dict[Path, str] = {}

    def rows(self, entries: Sequence[Entry], form: str) -> Rows:
        """Return the rows (N, D) of N entries in one form, computing those that are new."""
        keys = [self._key(entry) for entry in entries]
        known = self._read(form)
        missing = [(key, one) for key, one in zip(keys, entries, strict=True) if key not in known]
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            computed = self._compute([entry for _, entry in part], form)
            known |= dict(zip((key for key, _ in part), computed, strict=True))
            self._write(form, [key for key, _ in part], computed)
            _log.info("form_computed", form=form, done=start + len(part), of=len(missing))
        return np.stack([known[key] for key in keys])

    def _key(self, entry: Entry) -> str:
        if entry.path not in self._digests:
            self._digests[entry.path] = sha256_of(entry.path)
        return f"{entry.label} {self._digests[entry.path]}"

    def _compute(self, entries: Sequence[Entry], form: str) -> Rows:
        computed: list[Rows] = []
        for start in range(0, len(entries), BATCH):
            pictures = [self._pixels(entry, form) for entry in entries[start : start + BATCH]]
            computed += retry_in_halves(self._reader, pictures)
        return np.stack(computed)

    def _pixels(self, entry: Entry, form: str) -> Pixels:
        if form == RAW:
            return untouched(entry)
        if not form.startswith(AUGMENTED):
            return TIERS[form](harmonised(entry))
        pixels, kind = read_pixels(entry)
        seed = int(self._key(entry).split()[1][:12], 16)
        rng = np.random.default_rng([seed, int(form.removeprefix(AUGMENTED))])
        lossy = entry.generated and kind == "JPEG"
        return draw_whole(pixels, rng, self._augmentation, lossy=lossy)

    def _read(self, form: str) -> dict[str, Rows]:
        known: dict[str, Rows] = {}
        for file in sorted((self._folder / form).glob("part-*.safetensors")):
            with safe_open(file, framework="numpy") as part:
                rows = part.get_tensor("rows")
                known |= zip(json.loads(part.metadata()["keys"]), rows, strict=True)
        return known

    def _write(self, form: str, keys: Sequence[str], computed: Rows) -> None:
        folder = self._folder / form
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"part-{len(list(folder.glob('part-*.safetensors'))):04d}.safetensors"
        tensors = {"rows": torch.from_numpy(computed)}
        with written_aside(file) as aside:
            save_file(tensors, aside, metadata={"keys": json.dumps(list(keys))})
