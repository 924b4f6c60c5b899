"""A generator: an autoencoder and, where there is one, a noise predictor, in diffusers' classes.

One small interface over the families: latents are scaled and shifted the way the predictor was
trained (autoencoder configuration: `(z - shift_factor) * scaling_factor`), the forward process is
the variance-preserving one (epsilon and v prediction; `z_t = sqrt(a_t) z + sqrt(1 - a_t) e`) or the
straight line of rectified flow (`z_s = (1 - s) z + s e`); `add_noise` noises latents and says what
the predictor should answer, `predict` asks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detection.errors import SettingsError
from detection.generators.predictors import call_predictor

if TYPE_CHECKING:
    from collections.abc import Mapping

EPSILON, VELOCITY, FLOW = "epsilon", "v_prediction", "flow"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """The forward process: how clean latents and noise mix at a step, and what is predicted.

    `alphas_cumprod` is float32 (T,) for the variance-preserving kinds and None for flow, whose
    noise level at step t of `steps` is t / steps. (A flow scheduler's `shift` only chooses at which
    levels a sampler stops; the level that belongs to a step does not depend on it.)
    """

    prediction: str
    steps: int
    alphas_cumprod: Tensor | None = None

    def add_noise(self, latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Noise latents (B, C, h, w) to `step`; returns them and the prediction target."""
        if self.prediction == FLOW:
            sigma = step / self.steps
            return (1 - sigma) * latents + sigma * noise, noise - latents
        signal, spread = self.alpha_sigma(step)
        noised = signal * latents + spread * noise
        if self.prediction == VELOCITY:
            return noised, signal * noise - spread * latents
        return noised, noise

    def alpha_sigma(self, step: int) -> tuple[float, float]:
        """Return (sqrt(a_t), sqrt(1 - a_t)) of the variance-preserving process."""
        if self.alphas_cumprod is None:
            raise SettingsError("a flow process has no variance-preserving levels")
        kept = float(self.alphas_cumprod[step])
        return kept**0.5, (1 - kept) ** 0.5


def noise_schedule_from_scheduler(config: Mapping[str, Any]) -> NoiseSchedule:
    """Build the process from a diffusers scheduler configuration.

    Raises `SettingsError` for a prediction type that this detector does not know.
    """
    from diffusers import DDPMScheduler

    steps = int(config.get("num_train_timesteps", 1000))
    prediction = str(config.get("prediction_type", EPSILON))
    if "Flow" in str(config.get("_class_name", "")) or prediction == "flow_prediction":
        return NoiseSchedule(prediction=FLOW, steps=steps)
    if prediction not in {EPSILON, VELOCITY}:
        raise SettingsError(f"prediction type {prediction!r} is not supported: epsilon, v or flow")
    known = {
        name: config[name]
        for name in (
            "beta_start",
            "beta_end",
            "beta_schedule",
            "trained_betas",
            "rescale_betas_zero_snr",
        )
        if config.get(name) is not None
    }
    scheduler = DDPMScheduler(num_train_timesteps=steps, **known)
    return NoiseSchedule(
        prediction=prediction, steps=steps, alphas_cumprod=scheduler.alphas_cumprod
    )


class Generator(nn.Module):
    """An autoencoder of the KL, VQ, DC or Tiny kind and an optional noise predictor.

    `conditioning` holds the constant tensors that the predictor is called with (a prompt's
    embedding and whatever else the family needs), each with a leading axis of 1.
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
        config = autoencoder.config
        self.scaling = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)

    @property
    def factor(self) -> int:
        """Down-sampling factor f of the autoencoder."""
        config = self.autoencoder.config
        if ratio := getattr(self.autoencoder, "spatial_compression_ratio", None):
            return int(ratio)
        channels = config.get("block_out_channels") or config.get("decoder_block_out_channels")
        return int(2 ** (len(channels) - 1))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the generator can do: "reconstruct", and "lare" where there is a predictor."""
        return ("reconstruct", "lare") if self.predictor is not None else ("reconstruct",)

    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/f, W/f).

        Takes the posterior's mode: a verdict must not depend on a draw.
        """
        encoded = self.autoencoder.encode(images)
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.mode()
        else:
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        scaled: Tensor = (latents - self.shift) * self.scaling
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Map scaled latents (B, C, h, w) to float images (B, 3, f h, f w), clipped to [-1, 1]."""
        images: Tensor = self.autoencoder.decode(latents / self.scaling + self.shift).sample
        return images.clamp(-1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Noise scaled latents (B, C, h, w) to `step`; returns them and the prediction target."""
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
        timesteps = torch.full((batch,), step, device=noised.device)
        return call_predictor(self.predictor, noised, timesteps, conditioning)


def noise_bank(shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw a float32 noise bank on the CPU, so that it is the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
