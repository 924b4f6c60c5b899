"""Training of a small diffusion model on pixels: a generator that has no autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diffusers import UNet2DModel
from torch.nn import functional

from training.fit.generator_tasks import AutoencoderTask, noised_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from detection.generators.noise_schedule import NoiseSchedule
    from training.data.samples import Sample

#: Side of the crops that are learnt from, in pixels.
CROP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSpec:
    """A small U-Net on pixels, and its reconstructions: noised to `step`, denoised in `passes`.

    `widths` are multiples of 8.
    """

    widths: tuple[int, ...] = (32, 64, 64)
    step: int = 120
    passes: int = 4

    @property
    def name(self) -> str:
        """How its reconstructions and its run are called."""
        return f"own-pixels-{'-'.join(map(str, self.widths))}"


def build_pixel_predictor(spec: PixelSpec) -> UNet2DModel:
    """Build a random noise predictor for pixels (B, 3, H, W); sides are multiples of 4."""
    return UNet2DModel(
        sample_size=CROP,
        block_out_channels=spec.widths,
        down_block_types=("DownBlock2D",) * len(spec.widths),
        up_block_types=("UpBlock2D",) * len(spec.widths),
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
    )


class PixelTask:
    """Noise prediction on random crops of photographs."""

    def __init__(
        self, samples: Sequence[Sample], schedule: NoiseSchedule, *, batch_size: int = 16
    ) -> None:
        self._crops = AutoencoderTask(samples, crop=CROP, batch_size=batch_size)
        self._schedule = schedule

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make noised crops, steps and targets, each with leading axis B."""
        images = self._crops.batch(seed, step)["images"]
        return noised_batch(images, self._schedule, np.random.default_rng([seed, step, 1]))

    @staticmethod
    def loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared error of the prediction."""
        answer = model(batch["noised"], timestep=batch["steps"]).sample
        return {"loss": functional.mse_loss(answer.float(), batch["target"])}
