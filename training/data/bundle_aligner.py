"""Aligners of generators: a round trip through the autoencoder of a bundle or of a preset."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from detection.bundle import Bundle, BundleError, GeneratorReference
from detection.bundle_generator import load_bundle_generator, verify_bundle_generator
from training.data.aligners import AutoencoderReconstruction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from detection.generators.generator import Generator
    from training.data.aligners import Aligner


def bundle_aligner(
    bundle: Bundle, *, device: str = "cpu", generators: Path | None = None
) -> AutoencoderReconstruction:
    """Build the aligner, named after the bundle, whose generator may be a preset.

    Raises `BundleError` without a generator, and as `load_bundle_generator` does.
    """
    if bundle.manifest.generator is None:
        raise BundleError(f"{bundle.folder} has no generator: it cannot make pairs")
    generator = load_bundle_generator(bundle, {}, generators=generators, predictor=False)
    version = _version(bundle, bundle.manifest.generator)
    return generator_aligner(bundle.manifest.name, generator, version=version, device=device)


def _version(bundle: Bundle, reference: GeneratorReference) -> str:
    """Digest the hashes of a generator's files: bundles taught further share their generator."""
    within = f"{reference.folder}/"
    own = {name: sha for name, sha in bundle.manifest.files.items() if name.startswith(within)}
    return digest_of(reference.files or own)


def digest_of(hashes: Mapping[str, str]) -> str:
    """Return twelve digits that stand for files by name and sha256."""
    listed = json.dumps(sorted(hashes.items()))
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def pair_aligners(
    champion: Bundle,
    named: Sequence[Aligner],
    *,
    device: str = "cpu",
    generators: Path | None = None,
) -> list[Aligner]:
    """Return the makers of pairs of a run: those named, else the champion's own autoencoder.

    A preset that the champion is scored with is verified before the pairs are made, which takes
    long. Raises as `bundle_aligner` does.
    """
    if not named:
        return [bundle_aligner(champion, device=device, generators=generators)]
    if champion.manifest.generator is not None:
        verify_bundle_generator(champion, generators=generators)
    return list(named)


def generator_aligner(
    name: str, generator: Generator, *, version: str = "", device: str = "cpu"
) -> AutoencoderReconstruction:
    """Build the aligner of an autoencoder: float32 on a CPU, bfloat16 arithmetic on a GPU."""
    generator.eval().requires_grad_(requires_grad=False).to(device)

    def round_trip(images: Tensor) -> Tensor:
        enabled = torch.device(device).type == "cuda"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
            restored = generator.decode(generator.encode(images.to(device) * 2 - 1))
        return restored.float().cpu() / 2 + 0.5

    return AutoencoderReconstruction(name, round_trip, generator.factor, version)
