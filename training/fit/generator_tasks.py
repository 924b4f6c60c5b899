"""Training of small generators from scratch: autoencoders, and the embedded noise predictor.

The classes are diffusers' own (`AutoencoderKL`, `UNet2DConditionModel`), the same that the large
presets load; only the widths are small. Autoencoders that only make pairs may double their sides
in other ways than diffusers', because each way leaves a trace of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from detection.generators.generator import noise_bank
from training.data.augmentation import AugmentationConfig, sample_crop
from training.data.samples import BalancedSampler, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detection.generators.noise_schedule import NoiseSchedule

#: Weight of the KL term: keeps the latents near a unit Gaussian without blurring them.
KL_WEIGHT = 1e-6
#: Weight of the error in image gradients, which a plain absolute error leaves blurred.
GRADIENT_WEIGHT = 0.5
CONDITIONING_DIM = 32


Upsampling = Literal["nearest", "transposed", "shuffled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderSpec:
    """A small autoencoder of our own; the defaults are the embedded generator's.

    Widths are multiples of 8 and at least 16 (torch's CPU kernels corrupt memory in the training of
    narrower convolutions, channels last). The down-sampling factor is 2^(len(widths) - 1).
    """

    widths: tuple[int, ...] = (16, 32, 64, 96)
    latent_channels: int = 4
    upsampling: Upsampling = "nearest"
    #: Whether a critic is trained against it, as VQGAN's is (`training.fit.adversarial_task`).
    adversarial: bool = False

    @property
    def name(self) -> str:
        """How its reconstructions and its run are called."""
        widths = "-".join(map(str, self.widths))
        name = f"own-{self.upsampling}-{widths}-{self.latent_channels}"
        return f"{name}-adversarial" if self.adversarial else name


class Shuffled(nn.Module):
    """Doubles the sides by a convolution to four times the channels and a pixel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        return functional.pixel_shuffle(self.conv(features), 2)


def build_autoencoder(spec: AutoencoderSpec | None = None) -> AutoencoderKL:
    """Build an autoencoder, random: the embedded one unless `spec` says otherwise."""
    spec = spec or AutoencoderSpec()
    autoencoder = AutoencoderKL(
        block_out_channels=spec.widths,
        down_block_types=("DownEncoderBlock2D",) * len(spec.widths),
        up_block_types=("UpDecoderBlock2D",) * len(spec.widths),
        layers_per_block=1,
        latent_channels=spec.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
    )
    for block in autoencoder.decoder.up_blocks:
        for index, upsampler in enumerate(block.upsamplers or ()):
            channels = upsampler.channels
            match spec.upsampling:
                case "transposed":
                    block.upsamplers[index] = nn.ConvTranspose2d(channels, channels, 4, 2, 1)
                case "shuffled":
                    block.upsamplers[index] = Shuffled(channels)
                case "nearest":  # diffusers' own
                    pass
    return autoencoder


def build_predictor() -> UNet2DConditionModel:
    """Build the embedded noise predictor for latents (B, 4, 32, 32)."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=CONDITIONING_DIM,
        attention_head_dim=8,
        norm_num_groups=8,
    )


class AutoencoderTask:
    """Reconstruction of random crops: absolute error, gradient error and a light KL term."""

    def __init__(self, samples: Sequence[Sample], *, crop: int = 96, batch_size: int = 16) -> None:
        self._picker = BalancedSampler(samples)
        self._batch_size = batch_size
        self._augmentation = AugmentationConfig(
            crop=crop, margin=0, jpeg_p=0, webp_p=0, blur_p=0, noise_p=0, cutout_p=0
        )

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make float crops (B, 3, crop, crop) in [-1, 1]."""
        rng = np.random.default_rng([seed, step])
        crops = []
        for _ in range(self._batch_size):
            sample = self._picker.pick(rng)
            crops.append(
                sample_crop(rng, sample.pixels.shape, self._augmentation).apply(sample.pixels)
            )
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return {"images": images.contiguous().float() / 127.5 - 1}

    @staticmethod
    def loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss and the mean absolute error in [-1, 1] units."""
        return reconstruct(model, batch["images"])[1]


def reconstruct(autoencoder: Any, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Send images (B, 3, H, W) in [-1, 1] through an autoencoder, by a draw of the posterior.

    Returns what comes back, float32 of the same shape, and the parts of `AutoencoderTask`'s loss.
    """
    images = images.to(memory_format=torch.channels_last)
    posterior = autoencoder.encode(images).latent_dist
    restored = autoencoder.decode(posterior.sample()).sample.float()
    absolute = functional.l1_loss(restored, images)
    gradient = sum(
        functional.l1_loss(restored.diff(dim=axis), images.diff(dim=axis)) for axis in (2, 3)
    )
    kl = posterior.kl().float().mean()
    loss = absolute + GRADIENT_WEIGHT * gradient + KL_WEIGHT * kl
    return restored, {"loss": loss, "absolute": absolute.detach(), "kl": kl.detach()}


class PredictorTask:
    """Noise prediction on stored latents, with the constant conditioning of the bundle."""

    def __init__(
        self,
        latents: Tensor,
        schedule: NoiseSchedule,
        conditioning: Tensor,
        *,
        batch_size: int = 16,
    ) -> None:
        self._latents, self._schedule = latents, schedule
        self._conditioning, self._batch_size = conditioning, batch_size

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make noised latents, steps and targets, each with leading axis B."""
        rng = np.random.default_rng([seed, step])
        picks = torch.from_numpy(rng.integers(len(self._latents), size=self._batch_size))
        latents = self._latents[picks]
        flip = torch.from_numpy(rng.random(self._batch_size) < 0.5)
        latents = torch.where(flip[:, None, None, None], latents.flip(-1), latents)
        return noised_batch(latents, self._schedule, rng)

    def loss(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared error of the prediction."""
        conditioning = self._conditioning.expand(len(batch["noised"]), -1, -1)
        answer = model(
            batch["noised"], timestep=batch["steps"], encoder_hidden_states=conditioning
        ).sample
        return {"loss": functional.mse_loss(answer.float(), batch["target"])}


def noised_batch(
    latents: Tensor, schedule: NoiseSchedule, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Noise latents (B, C, h, w), each to a step of its own: `noised`, `target` and `steps`."""
    noise = noise_bank(tuple(latents.shape), seed=int(rng.integers(2**31)))
    steps = rng.integers(schedule.steps, size=len(latents))
    mixed = [
        schedule.add_noise(latent, draw, int(at))
        for latent, draw, at in zip(latents, noise, steps, strict=True)
    ]
    return {
        "noised": torch.stack([noised for noised, _ in mixed]),
        "target": torch.stack([target for _, target in mixed]),
        "steps": torch.from_numpy(steps),
    }
