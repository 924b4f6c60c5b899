"""Tiny random models of each preset's family, as its repository is laid out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)

from detection.generators.generator import noise_bank
from detection.generators.presets import PRESETS
from tests.support.bundles.tiny_bundle import tiny_autoencoder, tiny_predictor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

TEXT = noise_bank((1, 3, 8), seed=1)
POOLED = noise_bank((1, 8), seed=2)


def sd(**options: object) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    """Stable Diffusion 1.5 or 2.1: a U-Net and text."""
    return tiny_predictor(), DDPMScheduler(**options), {"encoder_hidden_states": TEXT}


def sdxl() -> tuple[nn.Module, Any, dict[str, Tensor]]:
    """SDXL: a U-Net with pooled text (8) and six time ids of width 4."""
    network = tiny_predictor(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    times = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    constants = {"encoder_hidden_states": TEXT, "added_text_embeds": POOLED}
    return network, DDPMScheduler(), constants | {"added_time_ids": times}


def sd3() -> tuple[nn.Module, Any, dict[str, Tensor]]:
    """Stable Diffusion 3: a transformer on the latent grid, rectified flow."""
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    constants = {"encoder_hidden_states": TEXT, "pooled_projections": POOLED}
    return network, FlowMatchEulerDiscreteScheduler(shift=3.0), constants


def flux(*, guidance: bool = False) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    """Flux.1: a transformer on packed latents, rectified flow."""
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    constants = {"encoder_hidden_states": TEXT, "pooled_projections": POOLED}
    if guidance:
        constants["guidance"] = torch.tensor([3.5])
    return network, FlowMatchEulerDiscreteScheduler(), constants


FAMILIES: dict[str, Callable[[], tuple[nn.Module, Any, dict[str, Tensor]]]] = {
    "sd15": sd,
    "sd21": lambda: sd(prediction_type="v_prediction"),
    "sdxl": sdxl,
    "sd3": sd3,
    "flux1": flux,
}


def save_family(folder: Path, name: str, **options: object) -> dict[str, Tensor]:
    """Save a tiny model of the preset's family the way its repository is laid out."""
    torch.manual_seed(0)
    network, scheduler, constants = FAMILIES[name]()
    tiny_autoencoder().save_pretrained(folder / "vae", **options)
    network.save_pretrained(folder / PRESETS[name].predictor, **options)
    scheduler.save_pretrained(folder / "scheduler")
    return constants
