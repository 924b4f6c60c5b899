"""Loader for the published tiny autoencoder of FLUX.2 (TAEF2), for making pairs and measuring.

Its tensors are stored as flat `Sequential` state dicts that diffusers' `AutoencoderTiny` cannot
hold: the three middle blocks of each side carry a group-normalised pooling branch. Images are in
[0, 1] in and out, the factor is 8, latents have 32 channels. The weights are read from a folder of
the user's and never shipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detection.errors import SettingsError
from training.data.aligners import AutoencoderReconstruction

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 64
LATENT_CHANNELS = 32
POOL_GROUPS = 4


class _Block(nn.Module):
    """Three 3x3 convolutions with a skip; the middle blocks first add a pooled 1x1 branch."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [nn.ReLU()] if index else []
            layers.append(nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
        self.conv = nn.Sequential(*layers)
        self.pool: nn.Module | None = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, 64, H, W) to the same shape."""
        if self.pool is not None:
            features = features + self.pool(features)
        return torch.relu(self.conv(features) + features)


class _Clamp(nn.Module):
    """Soft limit of the latent that the published decoder begins with."""

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents smoothly into (-3, 3)."""
        return torch.tanh(latents / 3) * 3


def _blocks(*, pooled: bool = False) -> list[nn.Module]:
    return [_Block(pooled=pooled) for _ in range(3)]


def _halve() -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)


def _double() -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]


class TinyAutoencoder(nn.Module):
    """TAEF2: `encode` and `decode` between images in [0, 1] and 32-channel latents at 1/8 size."""

    factor = 8

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(3, WIDTH, 3, padding=1)
        last = nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1)
        middle = [_halve(), *_blocks(), _halve(), *_blocks(), _halve(), *_blocks(pooled=True)]
        self.encoder = nn.Sequential(first, _Block(pooled=False), *middle, last)
        self.decoder = nn.Sequential(
            _Clamp(),
            nn.Conv2d(LATENT_CHANNELS, WIDTH, 3, padding=1),
            nn.ReLU(),
            *_blocks(pooled=True),
            *_double(),
            *_blocks(),
            *_double(),
            *_blocks(),
            *_double(),
            _Block(pooled=False),
            nn.Conv2d(WIDTH, 3, 3, padding=1),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [0, 1], sides multiples of 8, to (B, 32, H/8, W/8)."""
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, 32, h, w) to float images (B, 3, 8h, 8w) in [0, 1]."""
        images: Tensor = self.decoder(latents)
        return images.clamp(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Send float images (B, 3, H, W) in [0, 1] through the autoencoder."""
        return self.decode(self.encode(images))


def load_taef2(folder: Path) -> TinyAutoencoder:
    """Load `encoder.safetensors` and `decoder.safetensors` from `folder`, in evaluation mode.

    Raises `SettingsError` when a file is missing or does not hold this network.
    """
    model = TinyAutoencoder()
    for part in ("encoder", "decoder"):
        file = folder / f"{part}.safetensors"
        if not file.is_file():
            raise SettingsError(f"no {file.name} in {folder}: expected the TAEF2 autoencoder")
        try:
            getattr(model, part).load_state_dict(load_file(file))
        except RuntimeError as error:
            raise SettingsError(f"{file} does not hold the TAEF2 {part}: {error}") from error
    return model.float().eval()


def taef2_aligner(folder: Path) -> AutoencoderReconstruction:
    """Build the aligner that sends images through TAEF2, in bfloat16 arithmetic on the CPU."""
    network = load_taef2(folder)

    def round_trip(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            restored: Tensor = network(images)
        return restored.float()

    return AutoencoderReconstruction("taef2", round_trip, TinyAutoencoder.factor)
