"""Calls every family of noise predictors by one function on latents.

Networks on a latent grid (U-Nets, SD3, PixArt) take it as it is, and steps from 0 to 1000. Flux
takes 2 x 2 patches as tokens with their positions, and steps from 0 to 1 (diffusers' FluxPipeline
is the reference for both). Conditioning arrives by the names of the network's own arguments; the
ones that diffusers nests into `added_cond_kwargs` carry the prefix `added_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detection.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

FLUX = "FluxTransformer2DModel"
#: Flux multiplies the steps it is given by this.
FLUX_STEPS = 1000


def required_conditioning(network: Any) -> frozenset[str]:
    """Name the constant tensors without which a predictor cannot be called."""
    config = network.config
    match type(network).__name__:
        case "UNet2DModel":
            return frozenset()
        case "UNet2DConditionModel" if config.addition_embed_type == "text_time":
            return frozenset({"encoder_hidden_states", "added_text_embeds", "added_time_ids"})
        case "SD3Transformer2DModel":
            return frozenset({"encoder_hidden_states", "pooled_projections"})
        case "FluxTransformer2DModel":
            needed = {"encoder_hidden_states", "pooled_projections"}
            return frozenset(needed | ({"guidance"} if config.guidance_embeds else set()))
        case "PixArtTransformer2DModel" if config.use_additional_conditions:
            return frozenset({"encoder_hidden_states", "added_resolution", "added_aspect_ratio"})
        case _:
            return frozenset({"encoder_hidden_states"})


def call_predictor(
    network: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]
) -> Tensor:
    """Ask a predictor about noised latents (B, C, h, w) at timesteps (B,); same shape.

    Every conditioning tensor has the leading axis B. Raises `SettingsError` naming what is missing.
    """
    if missing := required_conditioning(network) - conditioning.keys():
        raise SettingsError(
            f"{type(network).__name__} needs the conditioning {', '.join(sorted(missing))}"
        )
    arguments: dict[str, Any] = {
        name: value for name, value in conditioning.items() if not name.startswith("added_")
    }
    if type(network).__name__ == FLUX:
        return _call_packed(network, noised, timesteps, arguments)
    added = {
        name.removeprefix("added_"): value
        for name, value in conditioning.items()
        if name.startswith("added_")
    }
    if added:
        arguments["added_cond_kwargs"] = added
    answer: Tensor = network(noised, timestep=timesteps, **arguments).sample
    # PixArt predicts a variance in further channels.
    return answer[:, : noised.shape[1]]


def _call_packed(
    network: nn.Module, noised: Tensor, timesteps: Tensor, arguments: Mapping[str, Tensor]
) -> Tensor:
    height, width = noised.shape[-2:]
    texts = arguments["encoder_hidden_states"].shape[1]
    packed: Tensor = network(
        pack(noised),
        timestep=timesteps.to(noised.dtype) / FLUX_STEPS,
        img_ids=positions(height, width).to(noised),
        txt_ids=noised.new_zeros(texts, 3),
        **arguments,
    ).sample
    return unpack(packed, height, width)


def pack(latents: Tensor) -> Tensor:
    """Turn latents (B, C, h, w) of even sides into tokens (B, h/2 w/2, 4 C), row by row."""
    if latents.shape[-2] % 2 or latents.shape[-1] % 2:
        raise SettingsError(f"packed latents need even sides, got {tuple(latents.shape[-2:])}")
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    tokens: Tensor = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return tokens


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`: tokens (B, h/2 w/2, 4 C) to latents (B, C, h, w)."""
    patches = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))
    latents: Tensor = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return latents


def positions(height: int, width: int) -> Tensor:
    """Return (0, row, column) of each 2 x 2 patch of latents (h, w): float32 (h/2 w/2, 3)."""
    rows, columns = torch.arange(height // 2), torch.arange(width // 2)
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, columns)
    return grid.float()
