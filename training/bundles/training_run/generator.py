"""The generator of a run: a preset, or an autoencoder and a noise predictor of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from detection.generators.generator import Generator, noise_bank
from detection.generators.loading import load_generator_folder
from detection.generators.noise_schedule import noise_schedule_from_scheduler
from detection.lare import center_crop_resize
from training.bundles.training_run.weights import load_weights, save_weights
from training.data.aligners import to_tensor
from training.fit.adversarial_task import AdversarialPair, AdversarialTask
from training.fit.generator_tasks import (
    CONDITIONING_DIM,
    AutoencoderSpec,
    AutoencoderTask,
    PredictorTask,
    build_autoencoder,
    build_predictor,
)
from training.fit.loop import fit
from training.fit.pixel_task import PixelSpec, PixelTask, build_pixel_predictor

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL
    from torch import Tensor

    from training.bundles.preset_generator import PresetGenerator
    from training.bundles.training_run.inputs import RunInputs
    from training.data.samples import Sample


@dataclass(frozen=True, slots=True)
class GeneratorStage:
    """Loads the preset, or trains a generator of our own on photographs, once."""

    inputs: RunInputs
    preset: PresetGenerator | None

    def conditioning(self) -> dict[str, Tensor]:
        """The constant conditioning by name: the preset's, or zeros (1, 1, D) for our own."""
        if self.preset is not None:
            return dict(self.preset.conditioning)
        return {"encoder_hidden_states": torch.zeros(1, 1, CONDITIONING_DIM)}

    def noises(self) -> Tensor:
        """The bundle's noise bank (E, C, h, w)."""
        lare = self.inputs.recipe.lare
        shape = (4, lare.side // 8, lare.side // 8)
        if self.preset is not None:
            shape = self.preset.load().latent_shape(lare.side)
        return noise_bank((lare.ensemble, *shape), seed=0)

    def load(self) -> Generator:
        """Return the generator on the run's device, for inference."""
        if self.preset is not None:
            return self.preset.load().to(self.inputs.device)
        folder = self.inputs.run_dir / "generator"
        if not (folder / "unet" / "config.json").is_file():
            self._train(folder)
        generator = load_generator_folder(folder, self.conditioning())
        return generator.eval().requires_grad_(False).to(self.inputs.device)

    def autoencoder(self, spec: AutoencoderSpec) -> AutoencoderKL:
        """Train an autoencoder on crops of photographs, or load it."""
        embedded = spec == AutoencoderSpec()
        run_dir = self.inputs.run_dir / ("autoencoder" if embedded else f"own/{spec.name}")
        torch.manual_seed(0)
        network = build_autoencoder(spec)
        file = run_dir.with_name(f"{run_dir.name}.safetensors")
        if not file.is_file():
            save_weights(self._fit_autoencoder(network, spec, run_dir), file)
        load_weights(network, file)
        return network

    def pixel_generator(self, spec: PixelSpec) -> Generator:
        """Train a diffusion model on pixels of photographs, or load it; for inference."""
        run_dir = self.inputs.run_dir / "own" / spec.name
        torch.manual_seed(2)
        network = build_pixel_predictor(spec)
        schedule = noise_schedule_from_scheduler(DDPMScheduler().config)
        file = run_dir.with_name(f"{run_dir.name}.safetensors")
        if not file.is_file():
            task, loop = PixelTask(self._photographs(), schedule), self.inputs.recipe.predictor_loop
            save_weights(fit(network, task, loop, run_dir, device=self.inputs.device), file)
        load_weights(network, file)
        generator = Generator(None, network, schedule)
        return generator.eval().requires_grad_(False).to(self.inputs.device)

    def _fit_autoencoder(
        self, network: AutoencoderKL, spec: AutoencoderSpec, run_dir: Path
    ) -> dict[str, Tensor]:
        loop, device = self.inputs.recipe.autoencoder_loop, self.inputs.device
        if not spec.adversarial:
            return fit(network, AutoencoderTask(self._photographs()), loop, run_dir, device=device)
        pair, task = AdversarialPair(network), AdversarialTask(self._photographs())
        weights = fit(pair, task, loop, run_dir, device=device)
        own = "autoencoder."
        return {
            name.removeprefix(own): one for name, one in weights.items() if name.startswith(own)
        }

    def _train(self, folder: Path) -> None:
        inputs, reals = self.inputs, self._photographs()
        autoencoder = self.autoencoder(AutoencoderSpec())
        views = np.stack([center_crop_resize(s.pixels, inputs.recipe.lare.side) for s in reals])
        latents = _encode(autoencoder, views, inputs.device)
        # Latents are scaled to unit spread, as the large families' scaling factors do.
        autoencoder.register_to_config(scaling_factor=float(1 / latents.std()))
        autoencoder.save_pretrained(folder / "vae")
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        scheduler.save_pretrained(folder / "scheduler")
        task = PredictorTask(
            latents * autoencoder.config.scaling_factor,
            noise_schedule_from_scheduler(scheduler.config),
            self.conditioning()["encoder_hidden_states"],
        )
        torch.manual_seed(1)
        predictor = build_predictor()
        weights = fit(
            predictor,
            task,
            inputs.recipe.predictor_loop,
            inputs.run_dir / "predictor",
            device=inputs.device,
        )
        predictor.load_state_dict(weights)
        predictor.save_pretrained(folder / "unet")

    def _photographs(self) -> list[Sample]:
        return self.inputs.samples(self.inputs.training_photographs())


def _encode(autoencoder: Any, views: np.ndarray, device: str) -> Tensor:
    latents = []
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16):
        for start in range(0, len(views), 16):
            images = to_tensor(list(views[start : start + 16])).to(device) * 2 - 1
            latents.append(autoencoder.encode(images).latent_dist.mode().float().cpu())
    return torch.cat(latents)
