"""The two branches of a run, each trained once for a set of entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from detection.aligned import AlignedNet
from detection.egre import Egre
from training.bundles.training_run.weights import load_weights, save_weights
from training.data.shaders import shader_samples
from training.fit.aligned_task import AlignedTask
from training.fit.lare_task import LareTask
from training.fit.loop import fit
from training.fit.stay_positive import retrain_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.bundles.training_run.generator import GeneratorStage
    from training.bundles.training_run.inputs import RunInputs
    from training.bundles.training_run.pairs import PairStage
    from training.bundles.training_run.views import ViewStage
    from training.data.manifest import Entry
    from training.fit.loop import LoopConfig


@dataclass(frozen=True, slots=True)
class AlignedBranchStage:
    """Trains the network of the aligned branch on pairs."""

    inputs: RunInputs
    pairs: PairStage

    def train(self, name: str, entries: Sequence[Entry], *, steps: int | None) -> AlignedNet:
        """Train the network on `entries`, or load it."""
        recipe, device = self.inputs.recipe, self.inputs.device
        torch.manual_seed(0)
        network = AlignedNet(recipe.aligned)
        folder = self.inputs.run_dir / name
        file = folder / "aligned.safetensors"
        if not file.is_file():
            task, loop = self._task(entries), _with_steps(recipe.aligned_loop, steps)
            save_weights(fit(network, task, loop, folder / "aligned", device=device), file)
        load_weights(network, file)
        if (head_loop := recipe.positive_head_loop) is None:
            return network
        file = folder / "aligned-positive.safetensors"
        if not file.is_file():
            task = self._task(entries)
            weights = retrain_head(network, task, head_loop, folder / "head", device=device)
            save_weights(weights, file)
        load_weights(network, file)
        return network

    def _task(self, entries: Sequence[Entry]) -> AlignedTask:
        recipe = self.inputs.recipe
        samples, rendered = self.inputs.samples(entries), shader_samples(recipe.shaders)
        self.pairs.attach([*samples, *rendered])
        return AlignedTask(samples, recipe.augmentation, recipe.batch, rendered)


@dataclass(frozen=True, slots=True)
class LareBranchStage:
    """Trains the classifier of the lare branch on views with error maps."""

    inputs: RunInputs
    generator: GeneratorStage
    views: ViewStage

    def train(self, name: str, entries: Sequence[Entry], *, steps: int | None) -> Egre:
        """Train the classifier on `entries` and what was made of them, or load it."""
        recipe, folder = self.inputs.recipe, self.inputs.run_dir / name
        torch.manual_seed(0)
        network = Egre(recipe.egre)
        file = folder / "egre.safetensors"
        if not file.is_file():
            items = self.views.for_training(entries)
            factor = self.generator.load().factor
            task = LareTask(items, crop=recipe.lare.side * 7 // 8, factor=factor)
            loop = _with_steps(recipe.egre_loop, steps)
            device = self.inputs.device
            save_weights(fit(network, task, loop, folder / "egre", device=device), file)
        load_weights(network, file)
        return network


def _with_steps(loop: LoopConfig, steps: int | None) -> LoopConfig:
    return loop if steps is None else replace(loop, steps=steps)
