"""Sampling with predictors of every kind: one that knows the clean latents leads back to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import EPSILON, VELOCITY, noise_schedule_from_scheduler
from training.data.aligners import pad_to_multiple, to_tensor
from training.data.diffusion_sampling import PartialNoise, denoise

if TYPE_CHECKING:
    from torch import Tensor

CLEAN, NOISE = noise_bank((2, 4, 8, 8), seed=0), noise_bank((2, 4, 8, 8), seed=1)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", "prediction_type": EPSILON},
        {"_class_name": "DDIMScheduler", "prediction_type": VELOCITY},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {"_class_name": "EDMEulerScheduler", "prediction_type": EPSILON},
        {"_class_name": "EDMEulerScheduler", "prediction_type": VELOCITY, "sigma_data": 0.7},
        {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_schedule": "exponential"},
    ],
)
@pytest.mark.parametrize("start", [250, 990])
def test_a_predictor_that_knows_leads_to_the_clean_latents(
    config: dict[str, Any], start: int
) -> None:
    """From any step, and on the way every pass is fed the latents of its own step."""
    schedule = noise_schedule_from_scheduler(config)

    def predict(latents: Tensor, step: int) -> Tensor:
        noised, target = schedule.add_noise(CLEAN, NOISE, step)
        torch.testing.assert_close(latents, noised, rtol=0, atol=1e-3)
        return target

    noised, _ = schedule.add_noise(CLEAN, NOISE, start)
    generator: Any = SimpleNamespace(schedule=schedule, predict=predict)
    found = denoise(generator, noised, start=start, passes=6)
    torch.testing.assert_close(found, CLEAN, rtol=0, atol=2e-3)


def test_a_predictor_on_pixels_that_knows_returns_the_image() -> None:
    """Without an autoencoder pixels are noised and denoised, at sides that are no multiple of 4."""
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    schedule = noise_schedule_from_scheduler(DDPMScheduler().config)
    padded = pad_to_multiple(to_tensor([image]), 4) * 2 - 1

    class UNet2DModel(torch.nn.Linear):
        config = SimpleNamespace()

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            signal, spread = schedule.alpha_sigma(int(timestep[0]))
            return SimpleNamespace(sample=(sample - signal * padded) / spread)

    generator = Generator(None, UNet2DModel(1, 1), schedule)
    assert generator.latent_shape(64) == (3, 64, 64)
    (made,) = PartialNoise("pixels", generator, step=300, passes=3).reconstruct([image])
    assert np.abs(made.astype(int) - image).max() <= 1
