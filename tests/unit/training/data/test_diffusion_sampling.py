"""Sampling with predictors of every kind: one that knows the clean latents leads back to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from detection.generators.generator import noise_bank
from detection.generators.noise_schedule import EPSILON, VELOCITY, noise_schedule_from_scheduler
from training.data.diffusion_sampling import denoise

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
