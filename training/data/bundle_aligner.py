"""Aligners of generators: a round trip through the autoencoder of a bundle or of a preset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from detection.bundle import Bundle, BundleError
from detection.generators.loading import load_generator_folder
from training.data.aligners import AutoencoderReconstruction

if TYPE_CHECKING:
    from torch import Tensor

    from detection.generators.generator import Generator


def bundle_aligner(bundle: Bundle, *, device: str = "cpu") -> AutoencoderReconstruction:
    """Build the aligner, named after the bundle; raises `BundleError` without a generator in it."""
    reference = bundle.manifest.generator
    if reference is None or reference.folder is None:
        raise BundleError(f"{bundle.folder} holds no generator: it cannot make pairs")
    generator = load_generator_folder(bundle.path(reference.folder), predictor=False)
    return generator_aligner(bundle.manifest.name, generator, device=device)


def generator_aligner(
    name: str, generator: Generator, *, device: str = "cpu"
) -> AutoencoderReconstruction:
    """Build the aligner of an autoencoder; on a GPU it computes in bfloat16."""
    generator.eval().requires_grad_(requires_grad=False).to(device)

    def round_trip(images: Tensor) -> Tensor:
        enabled = torch.device(device).type == "cuda"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
            restored = generator.decode(generator.encode(images.to(device) * 2 - 1))
        return restored.float().cpu() / 2 + 0.5

    return AutoencoderReconstruction(name, round_trip, generator.factor)
