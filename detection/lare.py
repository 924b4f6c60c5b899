"""The latent reconstruction error of LaRE² (Luo et al., CVPR 2024, arXiv 2403.17465).

Encode, noise once to step t, predict once, and keep the squared error of every latent cell. Two
departures from the published code, both for the same verdict on the same picture: the latent is the
posterior's mode, and the noise comes from a fixed bank that is the same for every image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detection.centre_square import centre_square

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from detection.generators.generator import Generator


def center_crop_resize(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale RGB uint8 (H, W, 3) so that its shorter side is `side`, and cut the centre square.

    Antialiased bicubic, aspect ratio kept; returns uint8 (side, side, 3).
    """
    left, top, square, _ = centre_square(*image.shape[:2])
    box = (left, top, left + square, top + square)
    view = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(view)


def lare_map(generator: Generator, views: Tensor, noises: Tensor, step: int) -> Tensor:
    """Compute the error map of float views (B, 3, H, W) in [-1, 1].

    `noises` is the bank (E, C, H/f, W/f). Returns float32 (B, C, H/f, W/f): the squared difference
    between the predictor's answer and its target, averaged over the E noises.
    """
    latents = generator.encode(views)
    repeated = latents.repeat_interleave(len(noises), dim=0)
    bank = noises.to(latents).repeat(len(latents), 1, 1, 1)
    noised, target = generator.add_noise(repeated, bank, step)
    error = (generator.predict(noised, step) - target).float().square()
    averaged: Tensor = error.unflatten(0, (len(latents), len(noises))).mean(dim=1)
    return averaged


def to_minus_one_one(views: NDArray[np.uint8]) -> Tensor:
    """Map uint8 views (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1
