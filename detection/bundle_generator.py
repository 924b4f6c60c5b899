"""The generator of a bundle, which its lare branch scores with: its own, or a named preset.

A large preset's weights are not copied into bundles. Such a bundle states the preset, the revision
and the sha256 of every file it was made with, so that its model version still pins what scores; the
conditioning tensors are in the bundle, and no text encoder is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from detection.bundle import Bundle, BundleError, sha256_of
from detection.generators.loading import load_generator_folder
from detection.generators.predictors import required_conditioning
from detection.generators.presets import LARE, describe, find_folder, find_preset, load_preset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from detection.generators.generator import Generator
    from detection.networks.branch_configs import LareConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LareComponents:
    """The components that compute error maps; noises are float32 (E, C, h, w), one a pass."""

    config: LareConfig
    generator: Generator
    noises: Tensor


def load_lare(bundle: Bundle, *, generators: Path | None = None) -> LareComponents | None:
    """Load what a bundle computes error maps with; None where it has no generator for that.

    Raises as `load_bundle_generator` does, and `BundleError` when the noise bank is too small.
    """
    manifest = bundle.manifest
    if manifest.lare is None or manifest.generator is None:
        return None
    constants = load_file(bundle.path("constants.safetensors"))
    noises = constants.pop("noise_bank").float()
    if len(noises) < manifest.lare.ensemble:
        raise BundleError(f"{bundle.folder}: the noise bank is smaller than the ensemble")
    conditioning = {
        name.removeprefix("conditioning."): value.float() for name, value in constants.items()
    }
    return LareComponents(
        config=manifest.lare,
        generator=load_bundle_generator(bundle, conditioning, generators=generators),
        noises=noises[: manifest.lare.ensemble],
    )


def load_bundle_generator(
    bundle: Bundle,
    conditioning: Mapping[str, Tensor],
    *,
    generators: Path | None = None,
    predictor: bool = True,
) -> Generator:
    """Load the generator of a bundle, whether or not it has a lare branch.

    `predictor=False` loads the autoencoder alone. Raises as `verify_bundle_generator` does.
    """
    folder = verify_bundle_generator(bundle, generators=generators, predictor=predictor)
    reference = bundle.manifest.generator
    if reference is None or reference.preset is None:
        return load_generator_folder(folder, conditioning, predictor=predictor)
    generator = load_preset(
        find_preset(reference.preset),
        folder=folder,
        revision=reference.revision,
        conditioning=conditioning,
        variant=reference.variant,
        predictor=predictor,
    )
    if not predictor:
        return generator
    if missing := required_conditioning(generator.predictor) - conditioning.keys():
        names = ", ".join(sorted(missing))
        raise BundleError(f"{bundle.folder}: its constants lack the conditioning {names}")
    return generator


def verify_bundle_generator(
    bundle: Bundle, *, generators: Path | None = None, predictor: bool = True
) -> Path:
    """Return the folder of a bundle's generator, with every file as the bundle was made with it.

    A named preset is read from the folder of its name under `generators`, else from the hub's cache
    on this machine; nothing is fetched. Without `predictor` only its autoencoder is looked at.
    Raises `BundleError` when a file is missing or is not the one that the bundle was made with, and
    `PresetError`; both name the preset, its repository, the revision and the folder looked in.
    """
    reference = bundle.manifest.generator
    if reference is None:
        raise BundleError(f"{bundle.folder} has no generator")
    if reference.folder is not None:
        return bundle.path(reference.folder)
    preset = find_preset(reference.preset or "")
    if LARE not in preset.capabilities:
        raise BundleError(f"{bundle.folder}: preset {preset.name} has no predictor to score with")
    folder = find_folder(
        preset,
        folder=None if generators is None else generators / preset.name,
        revision=reference.revision,
        variant=reference.variant,
        predictor=predictor,
        local_files_only=True,
    )
    for name, sha256 in sorted(reference.files.items()):
        if not (predictor or name.startswith(f"{preset.autoencoder}/")):
            continue
        where = describe(preset, reference.revision, folder)
        if not (folder / name).is_file():
            raise BundleError(f"{where}: {name} is missing, which {bundle.folder} was made with")
        if sha256_of(folder / name) != sha256:
            raise BundleError(f"{where}: {name} is not the file {bundle.folder} was made with")
    return folder
