"""Sampling with a generator: whole images by DDIM, and partial-noise reconstructions.

DDIM (Song et al., ICLR 2021, arXiv 2010.02502, eq. 12 with eta = 0) for the variance-preserving
and the preconditioned kinds, Euler steps for flow. A partial-noise reconstruction encodes a real
image, noises it to some step and denoises it in a few: unlike an autoencoder round trip it carries
a LaRE signal, since the latent now comes out of the predictor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detection.errors import SettingsError
from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import FLOW, VELOCITY
from training.data.aligners import pad_to_multiple, to_images, to_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from detection.generators.noise_schedule import NoiseSchedule


def denoise(generator: Generator, latents: Tensor, *, start: int, passes: int) -> Tensor:
    """Denoise latents (B, C, h, w) from step `start` to 0 in `passes` predictor passes."""
    schedule = generator.schedule
    if schedule is None:
        raise SettingsError("this generator has no noise predictor: it cannot sample")
    steps = np.linspace(start, 0, passes + 1).round().astype(int)
    for now, following in zip(steps[:-1].tolist(), steps[1:].tolist(), strict=True):
        answer = generator.predict(latents, now)
        if schedule.prediction == FLOW:
            latents = latents + (following - now) / schedule.steps * answer
            continue
        clean, noise = _split(schedule, latents, answer, now)
        latents = schedule.add_noise(clean, noise, following)[0] if following else clean
    return latents


def _split(
    schedule: NoiseSchedule, latents: Tensor, answer: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Split noised latents into the clean ones and the noise that the answer stands for."""
    if schedule.preconditioning is not None:
        return schedule.preconditioning.clean_and_noise(latents, answer, step)
    signal, spread = schedule.alpha_sigma(step)
    if schedule.prediction == VELOCITY:
        return signal * latents - spread * answer, signal * answer + spread * latents
    return (latents - spread * answer) / signal, answer


def sample(
    generator: Generator, count: int, *, shape: tuple[int, int, int], seed: int, passes: int = 50
) -> list[NDArray[np.uint8]]:
    """Generate `count` RGB images from noise latents of `shape` (C, h, w)."""
    noise = noise_bank((count, *shape), seed=seed).to(next(generator.parameters()).device)
    schedule = generator.schedule
    start = (schedule.steps - 1) if schedule is not None else 0
    with torch.inference_mode():
        latents = denoise(generator, noise, start=start, passes=passes)
        return to_images(generator.decode(latents) / 2 + 0.5)


@dataclass(frozen=True, slots=True)
class PartialNoise:
    """Encode, noise to `step`, denoise in `passes`, decode; the noise is fixed by `seed`."""

    name: str
    generator: Generator
    step: int = 250
    passes: int = 4
    seed: int = 0

    @property
    def identity(self) -> str:
        """The name, and how the noise is added and taken away."""
        return f"{self.name} (step {self.step}, {self.passes} passes, seed {self.seed})"

    def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Reconstruct RGB images, uint8 (H, W, 3) of one size, to the same size and order."""
        pixels = to_tensor(images).to(next(self.generator.parameters()).device)
        height, width = pixels.shape[-2:]
        with torch.inference_mode():
            padded = pad_to_multiple(pixels, self.generator.factor * 4)
            latents = self.generator.encode(padded * 2 - 1)
            # One noise for all: neither batch nor order may change a reconstruction.
            noise = noise_bank((1, *latents.shape[1:]), seed=self.seed).to(latents)
            noise = noise.expand_as(latents)
            noised, _ = self.generator.add_noise(latents, noise, self.step)
            latents = denoise(self.generator, noised, start=self.step, passes=self.passes)
            restored = self.generator.decode(latents) / 2 + 0.5
        return to_images(restored[..., :height, :width].cpu())
