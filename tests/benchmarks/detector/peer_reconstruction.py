"""Peers that rebuild a picture: what a generator rebuilds well may have come out of one like it.

Both read one number (1,), the distance to the rebuilt picture with its sign changed, so that it is
higher for generated images. The generator is whatever autoencoder is at hand: neither paper's
figures can be expected of a small one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from detection.backbone import Backbone
from detection.bundle import BundleError
from detection.lare import to_minus_one_one
from tests.benchmarks.claims_costs import DIRE_PASSES, invert
from tests.benchmarks.detector.peer_formulas import native_square
from training.bundles.challenger import lare_of
from training.data.diffusion_sampling import denoise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from detection.bundle import Bundle
    from training.data.aligners import Aligner

    Pixels = NDArray[np.uint8]
    Rows = NDArray[np.float32]
    Reader = Callable[[Sequence[Pixels]], list[Rows]]

#: The stage whose features are compared: an early one, as AEROBLADE found best.
EARLY_STAGE = "blocks.1"


def frozen_backbone(bundle: Bundle, stages: tuple[str, ...]) -> Backbone:
    """Load the network of a bundle's backbone branch, to read the stages named.

    Raises `BundleError` for a bundle without a backbone.
    """
    config = bundle.manifest.backbone
    if config is None:
        raise BundleError(f"{bundle.folder} has no backbone to compare pictures with")
    backbone = Backbone(replace(config, stages=stages))
    stored = load_file(bundle.path("backbone.safetensors"))
    weights = {name: one.float() for name, one in stored.items() if name.startswith("network.")}
    backbone.load_state_dict(backbone.state_dict() | weights)
    backbone.eval().requires_grad_(requires_grad=False)
    return backbone


def early_features(bundle: Bundle) -> Callable[[Tensor], Tensor]:
    """Return what maps 8-bit values (B, 3, H, W) to unit features (B, C, h, w) of an early stage.

    Raises `BundleError` for a bundle without a backbone.
    """
    backbone = frozen_backbone(bundle, (EARLY_STAGE,))

    def read(values: Tensor) -> Tensor:
        (found,) = backbone._stages(values)
        return functional.normalize(found, dim=1)

    return read


def perceptual_distance(bundle: Bundle, aligner: Aligner) -> Reader:
    """Return AEROBLADE's kind of reader: distance to the autoencoder's round trip.

    (Ricker, Lukovnikov and Fischer, CVPR 2024, arXiv 2401.17879.) The paper's distance is LPIPS;
    here unit features of an early stage of the bundle's backbone are compared in the same way.
    """
    features = early_features(bundle)

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        squares = [native_square(one) for one in pictures]
        rebuilt = aligner.reconstruct(squares)
        with torch.inference_mode():
            gap = features(_values(squares)) - features(_values(rebuilt))
            distances = gap.square().sum(dim=1).mean(dim=(1, 2)).numpy()
        return [np.array([-one], dtype=np.float32) for one in distances]

    return read


def inversion_distance(bundle: Bundle) -> Reader:
    """Return DIRE's kind of reader: mean absolute error of DDIM inversion and reconstruction.

    (Wang et al., ICCV 2023, arXiv 2303.09295.) The paper trains a ResNet-50 on the error's picture;
    here its mean stands for it. Raises `BundleError` for a bundle without a predictor.
    """
    lare = lare_of(bundle)
    if lare is None or lare.generator.schedule is None:
        raise BundleError(f"{bundle.folder} has no generator with a noise predictor")
    generator, last = lare.generator, lare.generator.schedule.steps - 1

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        views = to_minus_one_one(np.stack([native_square(one) for one in pictures]))
        with torch.inference_mode():
            inverted = invert(generator, generator.encode(views), stop=last, passes=DIRE_PASSES)
            latents = denoise(generator, inverted, start=last, passes=DIRE_PASSES)
            distances = (generator.decode(latents) - views).abs().mean(dim=(1, 2, 3)).numpy()
        return [np.array([-one], dtype=np.float32) for one in distances]

    return read


def _values(squares: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float()
