"""Pairs of a run: photographs with their reconstructions, the aligned branch's fakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.generators.generator import Generator
from training.bundles.training_run.inputs import EMBEDDED
from training.data.alignment import attach_pairs, batch_for
from training.data.bundle_aligner import generator_aligner
from training.data.diffusion_sampling import PartialNoise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.bundles.training_run.generator import GeneratorStage
    from training.bundles.training_run.inputs import RunInputs
    from training.data.aligners import Aligner
    from training.data.samples import Sample


@dataclass(frozen=True, slots=True)
class PairStage:
    """Sends photographs through every aligner; without one, through the run's own generator."""

    inputs: RunInputs
    generator: GeneratorStage
    aligners: Sequence[Aligner]
    on_progress: Callable[[str, int, int], None]

    def attach(self, samples: Sequence[Sample]) -> None:
        """Attach each photograph's reconstructions, making those that are not stored."""
        photographs = [one for one in samples if not one.entry.generated]
        for aligner in self._all_aligners():
            attach_pairs(
                photographs,
                aligner,
                self.inputs.run_dir / "pairs" / aligner.name,
                batch_size=batch_for(self.inputs.device),
                on_progress=self.on_progress,
            )

    def _all_aligners(self) -> list[Aligner]:
        device = self.inputs.device
        own: list[Aligner] = [
            generator_aligner(spec.name, Generator(self.generator.autoencoder(spec)), device=device)
            for spec in self.inputs.recipe.autoencoders
        ]
        if (pixels := self.inputs.recipe.pixels) is not None:
            generator = self.generator.pixel_generator(pixels)
            own.append(PartialNoise(pixels.name, generator, pixels.step, pixels.passes))
        if self.aligners or own:
            return [*self.aligners, *own]
        return [generator_aligner(EMBEDDED, self.generator.load(), device=device)]
