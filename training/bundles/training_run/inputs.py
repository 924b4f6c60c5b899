"""What every stage of a run reads: its labelled images, its recipe, its folder, its device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training.data.samples import load_samples
from training.data.splits import divide

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from training.bundles.recipe import BundleRecipe
    from training.data.manifest import Entry
    from training.data.samples import Sample

#: Family and set names of what the embedded generator makes.
EMBEDDED = "embedded"


@dataclass(slots=True)
class RunInputs:
    """The images, decoded once and divided as the recipe says, and where results are stored."""

    entries: Sequence[Entry]
    run_dir: Path
    recipe: BundleRecipe
    device: str
    _samples: dict[Path, Sample] = field(default_factory=dict)

    def samples(self, entries: Iterable[Entry]) -> list[Sample]:
        """Decode entries once and keep them in memory."""
        wanted = list(entries)
        missing = [entry for entry in wanted if entry.path not in self._samples]
        for loaded in load_samples(missing):
            self._samples[loaded.entry.path] = loaded
        return [self._samples[entry.path] for entry in wanted]

    def divided(self) -> tuple[list[Entry], list[Entry]]:
        """Return the entries that the released networks train on and those that calibrate."""
        return divide(
            self.entries,
            validation=self.recipe.validation,
            calibration_sources=self.recipe.calibration_sources,
        )

    def training_photographs(self) -> list[Entry]:
        """Return the real images that the released networks train on."""
        return [entry for entry in self.divided()[0] if not entry.generated]
