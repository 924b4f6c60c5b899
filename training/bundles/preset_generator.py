"""A published generator in a bundle's training: its lare branch's networks, and makers of pairs.

The weights stay where they are, under a folder of presets or in the hub's cache. The bundle names
the preset, its revision and the sha256 of every file that was used, and carries the conditioning.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from detection.bundle import GeneratorReference, sha256_of
from detection.generators.presets import (
    LARE,
    Preset,
    PresetError,
    find_folder,
    load_preset,
    pinned_revision,
)
from detection.networks.branch_configs import LareConfig
from training.bundles.conditioning import compute_conditioning
from training.data.bundle_aligner import digest_of, generator_aligner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from detection.generators.generator import Generator
    from training.data.aligners import AutoencoderReconstruction


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetPlace:
    """Where presets lie: folders by their names under `generators`, else the hub's cache.

    `pins` is the file of the revisions; `variant` chooses among the weight files ("fp16").
    """

    pins: Path
    generators: Path | None = None
    variant: str | None = None

    def folder(self, preset: Preset) -> Path | None:
        """Return the preset's own folder, None for the hub's cache."""
        return None if self.generators is None else self.generators / preset.name

    def revision(self, preset: Preset) -> str | None:
        """Return the recorded revision, None where there is none."""
        return pinned_revision(preset, self.pins)

    def aligner(self, preset: Preset, *, device: str) -> AutoencoderReconstruction:
        """Build the aligner that sends images through the preset's autoencoder.

        Its version is the recorded revision, or else stands for the files in the folder. Raises
        `PresetError` naming preset, repository, revision and folder.
        """
        generator = load_preset(
            preset,
            folder=self.folder(preset),
            revision=self.revision(preset),
            variant=self.variant,
            predictor=False,
        )
        version = " ".join(filter(None, (self._version(preset), self.variant)))
        return generator_aligner(preset.name, generator, version=version, device=device)

    def _version(self, preset: Preset) -> str:
        if revision := self.revision(preset):
            return revision[:12]
        return f"files {digest_of(self.hashes(preset, revision=None, predictor=False))}"

    def hashes(
        self, preset: Preset, *, revision: str | None, predictor: bool = True
    ) -> dict[str, str]:
        """Return the sha256 of every file that loading the preset reads, by its path in the folder.

        Raises `PresetError` as `load_preset` does.
        """
        folder = find_folder(
            preset,
            folder=self.folder(preset),
            revision=revision,
            variant=self.variant,
            predictor=predictor,
        )
        patterns = preset.patterns(predictor=predictor, variant=self.variant)
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))
        used = [name for name in names if any(fnmatch(name, one) for one in patterns)]
        for part in (preset.autoencoder, *([preset.predictor] if predictor else [])):
            weights = f"{part}/*.safetensors" if part else "*.safetensors"
            if not any(fnmatch(name, weights) for name in used):
                # A part in one file of another name.
                used += [name for name in names if fnmatch(name, weights)]
        return {name: sha256_of(folder / name) for name in used}


@dataclass(slots=True, kw_only=True)
class PresetGenerator:
    """The generator that a bundle's error maps are computed with; `conditioning` by name.

    Raises `PresetError` for a preset without a predictor or without a recorded revision.
    """

    preset: Preset
    place: PresetPlace
    conditioning: Mapping[str, Tensor]
    #: As it was recorded when training began; a record that changes meanwhile changes nothing.
    revision: str = field(init=False)
    _loaded: Generator | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        name = self.preset.name
        if LARE not in self.preset.capabilities:
            raise PresetError(f"preset {name} has no predictor: its bundle could not score")
        revision = self.place.revision(self.preset)
        if revision is None:
            raise PresetError(
                f"preset {name} ({self.preset.repository}) has no revision, which its bundle names:"
                f" `unlatent presets pin {name}` records one in {self.place.pins}"
            )
        self.revision = revision

    @property
    def identity(self) -> str:
        """Name all that error maps depend on: preset, revision, variant and conditioning."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.conditioning.items()):
            digest.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
        variant = f" {self.place.variant}" if self.place.variant else ""
        return (
            f"{self.preset.name}@{self.revision[:12]}{variant}"
            f" (conditioning {digest.hexdigest()[:12]})"
        )

    def load(self) -> Generator:
        """Load autoencoder and predictor, once; raises `PresetError` as `load_preset` does."""
        if self._loaded is None:
            generator = load_preset(
                self.preset,
                folder=self.place.folder(self.preset),
                revision=self.revision,
                conditioning=self.conditioning,
                variant=self.place.variant,
            )
            self._loaded = generator.eval().requires_grad_(requires_grad=False)
        return self._loaded

    def reference(self) -> GeneratorReference:
        """Name the preset with the sha256 of every file that loading it reads."""
        return GeneratorReference(
            preset=self.preset.name,
            revision=self.revision,
            variant=self.place.variant,
            files=self.place.hashes(self.preset, revision=self.revision),
        )


def load_preset_generator(
    preset: Preset, place: PresetPlace, *, conditioning: Path | None = None
) -> PresetGenerator:
    """Load a preset for training, with its conditioning from a file or by its text encoders.

    Raises `PresetError` naming preset, repository, revision and folder.
    """
    if conditioning is not None:
        tensors = _read(conditioning)
    else:
        tensors = compute_conditioning(
            preset,
            side=LareConfig().side,
            folder=place.folder(preset),
            revision=place.revision(preset),
            variant=place.variant,
        )
    chosen = PresetGenerator(preset=preset, place=place, conditioning=tensors)
    chosen.load()
    return chosen


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise PresetError(f"the conditioning in {file} cannot be read: {error}") from error
