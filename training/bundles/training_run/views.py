"""Views of a run: augmented crops with their error maps, which the lare branch learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from detection.lare import center_crop_resize
from training.bundles.training_run.inputs import EMBEDDED
from training.data.diffusion_sampling import PartialNoise, sample
from training.data.manifest import GENERATED, Entry
from training.data.samples import Sample
from training.fit.lare_task import LareSample, augmented_views, with_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detection.generators.generator import Generator
    from training.bundles.training_run.generator import GeneratorStage
    from training.bundles.training_run.inputs import RunInputs


@dataclass(frozen=True, slots=True)
class ViewStage:
    """Makes views of every image and of what the generator makes, and stores them in parts."""

    inputs: RunInputs
    generator: GeneratorStage

    def load(self) -> list[LareSample]:
        """Return the views of every image, making those that are not stored."""
        folder = self.inputs.run_dir / "views"
        folder.mkdir(parents=True, exist_ok=True)
        items: list[LareSample] = []
        everything = self.inputs.samples(self.inputs.entries)
        parts = [everything[start : start + 200] for start in range(0, len(everything), 200)]
        for index, part in enumerate([*parts, None]):
            file = folder / f"part-{index:03d}.safetensors"
            members = part if part is not None else self._own_fakes()
            if not file.is_file():
                self._make(members, file, seed=index)
            tensors = load_file(file)
            for row, number in enumerate(tensors["sample"].tolist()):
                view, error = tensors["view"][row].numpy(), tensors["error"][row].numpy()
                items.append(LareSample(members[number].entry, view, error))
        return items

    def for_training(self, entries: Sequence[Entry]) -> list[LareSample]:
        """Return the views of `entries` and of the fakes that were made of them or of nothing."""
        groups = {entry.group for entry in entries}
        paths = {entry.path for entry in entries}
        return [
            item
            for item in self.load()
            if item.entry.path in paths
            or (item.entry.family == EMBEDDED and _may_train(item.entry, groups))
        ]

    def _make(self, members: Sequence[Sample], file: Path, *, seed: int) -> None:
        recipe = self.inputs.recipe
        views = augmented_views(
            members, recipe.augmentation, recipe.lare, copies=recipe.view_copies, seed=seed
        )
        numbers = {id(member): number for number, member in enumerate(members)}
        listed = list(views)
        generator, noises = self.generator.load(), self.generator.noises()
        items = list(with_maps(listed, generator, noises, recipe.lare, device=self.inputs.device))
        tensors = {
            "sample": torch.tensor([numbers[id(owner)] for owner, _ in listed]),
            "view": torch.from_numpy(np.stack([item.view for item in items])),
            "error": torch.from_numpy(np.stack([item.error for item in items])),
        }
        save_file(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)

    def _own_fakes(self) -> list[Sample]:
        """Partial-noise reconstructions of photographs and samples of the embedded generator."""
        generator = self.generator.load()
        return [*self._partial_noise(generator), *self._sampled(generator)]

    def _partial_noise(self, generator: Generator) -> list[Sample]:
        recipe = self.inputs.recipe
        rng = np.random.default_rng(0)
        reals = self.inputs.training_photographs()
        picks = rng.choice(len(reals), min(recipe.partial_noise_images, len(reals)), replace=False)
        fakes = []
        for number, one in enumerate(self.inputs.samples([reals[index] for index in picks])):
            aligner = PartialNoise("partial", generator, step=int(100 + 50 * (number % 7)))
            view = center_crop_resize(one.pixels, recipe.lare.side)
            # The group of the original: a derivative stays on its original's side indefinitely.
            entry = _own(f"partial-{number}", "partial-noise", one.entry.group, one.entry.set)
            fakes.append(Sample(entry, aligner.reconstruct([view])[0], lossy=False))
        return fakes

    def _sampled(self, generator: Generator) -> list[Sample]:
        recipe = self.inputs.recipe
        shape = generator.latent_shape(recipe.lare.side)
        fakes = []
        for start in range(0, recipe.sampled_images, 8):
            count = min(8, recipe.sampled_images - start)
            for offset, image in enumerate(sample(generator, count, shape=shape, seed=start)):
                entry = _own(f"sample-{start + offset}", "sampled", f"sampled:{start + offset}", "")
                fakes.append(Sample(entry, image, lossy=False))
        return fakes


def _may_train(entry: Entry, groups: set[str]) -> bool:
    return entry.group in groups or entry.set == "sampled"


def _own(stem: str, set_: str, group: str, origin: str) -> Entry:
    path = Path(EMBEDDED) / (origin or set_) / stem
    return Entry(path=path, label=GENERATED, set=set_, family=EMBEDDED, group=group)
