"""The recipes of bundles: every number that shapes one, by name, and the file that records it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from detection.errors import SettingsError
from detection.networks.branch_configs import AlignedConfig, BackboneConfig, EgreConfig, LareConfig
from training.bundles.head_branch import HeadRecipe
from training.data.augmentation import AugmentationConfig
from training.data.splits import CALIBRATION_SOURCES, VALIDATION
from training.fit.aligned_task import AlignedBatch
from training.fit.generator_tasks import AutoencoderSpec
from training.fit.loop import LoopConfig
from training.fit.pixel_task import PixelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.bundles.preset_generator import PresetGenerator
    from training.evaluation.calibration import CalibrationKind


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
    #: A diffusion model of our own on pixels that makes pairs by partial noise.
    pixels: PixelSpec | None = None
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
#: branches that look for traces of decoders; these with more kinds of pairs; and these with pairs
#: by generators that are no latent diffusion.
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
        BundleRecipe(
            name="other-generators",
            autoencoders=(AutoencoderSpec(), AutoencoderSpec(adversarial=True)),
            pixels=PixelSpec(),
        ),
    )
}


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
