"""A generator: an autoencoder and, where there is one, a noise predictor, in diffusers' classes.

One small interface over the families: the adapter in `autoencoders.py` normalises latents the way
the predictor was trained, the process in `noise_schedule.py` is the scheduler's. `add_noise` noises
latents and says what the predictor should answer, `predict` asks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detection.errors import SettingsError
from detection.generators.autoencoders import latent_space
from detection.generators.predictors import call_predictor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from detection.generators.noise_schedule import NoiseSchedule


class Generator(nn.Module):
    """An autoencoder of a class with an adapter and an optional noise predictor.

    Without an autoencoder (None) the predictor denoises pixels.

    `conditioning` holds the constant tensors that the predictor is called with (a prompt's
    embedding and whatever else the family needs), each with a leading axis of 1. Raises
    `SettingsError` naming an autoencoder that has no adapter.
    """

    def __init__(
        self,
        autoencoder: Any,
        predictor: Any = None,
        schedule: NoiseSchedule | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.predictor = predictor
        self.schedule = schedule
        self._conditioning = tuple((conditioning or {}).keys())
        for name, value in (conditioning or {}).items():
            self.register_buffer(f"conditioning_{name}", value, persistent=False)
        self.latent_space = latent_space(autoencoder)

    @property
    def factor(self) -> int:
        """Down-sampling factor f from the sides of an image to those of its latents."""
        return self.latent_space.factor

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """Return the shape (C, side/f, side/f) of the latents of a square view."""
        cells = side // self.factor
        return self.latent_space.channels, cells, cells

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The capabilities of the generator: "reconstruct", and "lare" if it has a predictor."""
        return ("reconstruct", "lare") if self.predictor is not None else ("reconstruct",)

    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to normalised latents (B, C, H/f, W/f).

        Takes the posterior's mode: a verdict must not depend on a draw.
        """
        return self.latent_space.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Map normalised latents (B, C, h, w) to float images (B, 3, f h, f w) in [-1, 1]."""
        return self.latent_space.decode(latents).clamp(-1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Noise latents (B, C, h, w) to `step`; returns them and the prediction target."""
        if self.schedule is None:
            raise SettingsError("this generator has no forward process: it can only reconstruct")
        return self.schedule.add_noise(latents, noise, step)

    def predict(self, noised: Tensor, step: int) -> Tensor:
        """Ask the predictor about noised latents (B, C, h, w) at `step`; same shape."""
        if self.predictor is None:
            raise SettingsError("this generator has no noise predictor: it can only reconstruct")
        batch = noised.shape[0]
        conditioning = {}
        for name in self._conditioning:
            constant = getattr(self, f"conditioning_{name}")
            conditioning[name] = constant.expand(batch, *constant.shape[1:])
        timestep = step if self.schedule is None else self.schedule.timestep(step)
        timesteps = torch.full((batch,), timestep, device=noised.device)
        return call_predictor(self.predictor, noised, timesteps, conditioning)


def noise_bank(shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw a float32 noise bank on the CPU, so that it is the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
