"""The pipelines of diffusers around tiny networks, called with embeddings instead of prompts.

Each function samples with a network, a scheduler and the conditioning of `tiny_families.py`, and
returns the final latents; the text encoders are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from detection.generators.generator import noise_bank
from tests.support.bundles.tiny_bundle import tiny_autoencoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

STEPS = 10
START = noise_bank((1, 4, 8, 8), seed=1)


def _run(pipeline: Any, **options: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        **options,
        num_inference_steps=STEPS,
        height=32,
        width=32,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    return latents


def sample_sd(network: Any, scheduler: Any, constants: Mapping[str, Tensor]) -> Tensor:
    """Sample with Stable Diffusion's pipeline."""
    pipeline = StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=None,
        tokenizer=None,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _run(
        pipeline,
        prompt_embeds=constants["encoder_hidden_states"],
        guidance_scale=0.0,
        latents=START.clone(),
    )


def sample_sdxl(network: Any, scheduler: Any, constants: Mapping[str, Tensor]) -> Tensor:
    """Sample with SDXL's pipeline."""
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_autoencoder(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=network,
        scheduler=scheduler,
    )
    return _run(
        pipeline,
        prompt_embeds=constants["encoder_hidden_states"],
        pooled_prompt_embeds=constants["added_text_embeds"],
        guidance_scale=0.0,
        latents=START.clone(),
    )


def sample_sd3(network: Any, scheduler: Any, constants: Mapping[str, Tensor]) -> Tensor:
    """Sample with Stable Diffusion 3's pipeline."""
    pipeline = StableDiffusion3Pipeline(
        transformer=network,
        scheduler=scheduler,
        vae=tiny_autoencoder(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return _run(
        pipeline,
        prompt_embeds=constants["encoder_hidden_states"],
        pooled_prompt_embeds=constants["pooled_projections"],
        guidance_scale=0.0,
        latents=START.clone(),
    )


def sample_flux(network: Any, scheduler: Any, constants: Mapping[str, Tensor]) -> Tensor:
    """Sample with FLUX.1's pipeline; the latents come back packed."""
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=tiny_autoencoder(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=network,
    )
    return _run(
        pipeline,
        prompt_embeds=constants["encoder_hidden_states"],
        pooled_prompt_embeds=constants["pooled_projections"],
        guidance_scale=float(constants.get("guidance", torch.zeros(1))),
    )


#: The pipeline of each preset's family.
PIPELINES: dict[str, Callable[[Any, Any, Mapping[str, Tensor]], Tensor]] = {
    "sd15": sample_sd,
    "sd21": sample_sd,
    "sdxl": sample_sdxl,
    "sd3": sample_sd3,
    "flux1": sample_flux,
}
