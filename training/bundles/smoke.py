"""Smoke runs: every stage of a recipe on tiny networks and on images that the run draws itself.

Such a run shows within two minutes that an installation can train, before hours are spent on it.
The scores of its bundle mean nothing: photographs are procedural images, and generated images are
procedural images that were drawn at half the size and doubled, each family by a filter of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from detection.networks.branch_configs import AlignedConfig
from training.data.manifest import GENERATED, REAL, load_manifest
from training.data.shaders import renderings

if TYPE_CHECKING:
    from pathlib import Path

    from training.bundles.recipe import BundleRecipe
    from training.data.manifest import Entry
    from training.fit.loop import LoopConfig

#: Side of the images, in pixels; the aligned branch reads tiles of 128.
SIDE = 160
#: Images of each source and of each family: two of three sources support the 5 % point.
EACH = 24
#: Side of the view of the backbone, and of the lare branch.
BACKBONE_SIDE, LARE_SIDE = 128, 64
STEPS = 4
_SUFFIX = "-smoke"
#: Sources of photographs by the seed of their renderings.
SOURCES = {"drawn-a": 1, "drawn-b": 2, "drawn-c": 3}
#: Families of generators by the filter that doubles their images.
FAMILIES = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def smoke_recipe(recipe: BundleRecipe) -> BundleRecipe:
    """Return a recipe with the same stages, all of them tiny; its name ends in `-smoke`."""

    def short(loop: LoopConfig) -> LoopConfig:
        return replace(loop, steps=STEPS, loader_workers=0)

    backbone, head_loop = recipe.backbone, recipe.positive_head_loop
    if backbone is not None:
        backbone = replace(backbone, side=BACKBONE_SIDE, shrink_to=BACKBONE_SIDE)
    return replace(
        recipe,
        name=f"{recipe.name}{_SUFFIX}",
        validation=0.5,
        calibration_sources=0.5,
        lare=replace(recipe.lare, side=LARE_SIDE),
        aligned=AlignedConfig(widths=(16, 16), depths=(1, 1), max_tiles=1),
        autoencoder_loop=short(recipe.autoencoder_loop),
        predictor_loop=short(recipe.predictor_loop),
        aligned_loop=short(recipe.aligned_loop),
        egre_loop=short(recipe.egre_loop),
        positive_head_loop=None if head_loop is None else short(head_loop),
        fold_steps=STEPS,
        view_copies=1,
        partial_noise_images=4,
        sampled_images=2,
        autoencoders=tuple(replace(spec, widths=(16, 16)) for spec in recipe.autoencoders),
        pixels=None if recipe.pixels is None else replace(recipe.pixels, widths=(16, 16), passes=1),
        shaders=min(recipe.shaders, 4),
        backbone=backbone,
    )


def is_smoke(recipe: BundleRecipe) -> bool:
    """Say whether a recipe is one of `smoke_recipe`."""
    return recipe.name.endswith(_SUFFIX)


def draw_images(folder: Path) -> list[Entry]:
    """Draw labelled images of three sources and three families, with their manifest; read it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path\tlabel\tset\tfamily"]
    for source, seed in SOURCES.items():
        for name, pixels in renderings(EACH, seed=seed, side=SIDE):
            Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
            lines.append(f"{name}.jpg\t{REAL}\t{source}\t")
    for seed, (family, doubling) in enumerate(FAMILIES.items(), start=1 + len(SOURCES)):
        for name, pixels in renderings(EACH, seed=seed, side=SIDE // 2):
            doubled = Image.fromarray(pixels).resize((SIDE, SIDE), doubling)
            doubled.save(folder / f"{name}.jpg", quality=75)
            lines.append(f"{name}.jpg\t{GENERATED}\t{family}\t{family}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_manifest(folder)
