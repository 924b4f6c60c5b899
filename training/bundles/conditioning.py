"""The constant tensors that a published generator's predictor is called with: no prompt at all.

They are what diffusers' pipeline of each family passes where no prompt is given, computed once by
the preset's own text encoders, so that neither a bundle nor the service needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from detection.generators.predictors import FLUX
from detection.generators.presets import GUIDANCE, Preset, PresetError, describe, find_folder
from training.bundles.text_encoders import TextEncoderError, clip_answer, read_json, t5_answer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from training.bundles.text_encoders import ClipAnswer, Fields

#: Tokens that T5 answers with, and the guidance: the defaults of diffusers' pipelines (a FLUX that
#: was distilled to a few steps takes no guidance and at most half of its sibling's tokens).
SD3_TOKENS = 256
FLUX_TOKENS, FLUX_FAST_TOKENS = 512, 256
FLUX_GUIDANCE = 3.5


def compute_conditioning(
    preset: Preset,
    *,
    side: int,
    folder: Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> dict[str, Tensor]:
    """Compute a preset's conditioning, float32, each tensor with a leading axis of 1, by name.

    `side` is that of the views in pixels, of which SDXL is told. The text encoders are read from a
    local `folder`, else from the hub (its cache first) at `revision`. Raises `PresetError` naming
    preset, repository, revision and folder.
    """
    if not preset.predictor:
        raise PresetError(f"preset {preset.name} has no predictor: it takes no conditioning")
    folder = find_folder(preset, folder=folder, revision=revision, variant=variant, text=True)
    try:
        tensors = _compute(preset, folder, variant, side)
    except TextEncoderError as error:
        raise PresetError(f"{describe(preset, revision, folder)}: {error}") from error
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _compute(preset: Preset, folder: Path, variant: str | None, side: int) -> dict[str, Tensor]:
    config = read_json(folder / preset.predictor / "config.json")

    def clip(number: str = "") -> ClipAnswer:
        return clip_answer(folder / f"text_encoder{number}", folder / f"tokenizer{number}", variant)

    def t5(number: str, tokens: int) -> Tensor:
        return t5_answer(folder / f"text_encoder{number}", tokens, variant)

    match config["_class_name"]:
        case "UNet2DConditionModel" if config.get("addition_embed_type") == "text_time":
            return _sdxl(clip(), clip("_2"), read_json(folder / "model_index.json"), side)
        case "UNet2DConditionModel":
            return {"encoder_hidden_states": clip().last}
        case "SD3Transformer2DModel":
            return _sd3(clip(), clip("_2"), t5("_3", SD3_TOKENS))
        case name if name == FLUX:
            guided = bool(config["guidance_embeds"])
            tensors = {
                "encoder_hidden_states": t5("_2", FLUX_TOKENS if guided else FLUX_FAST_TOKENS),
                "pooled_projections": clip().pooled,
            }
            return tensors | ({GUIDANCE: torch.tensor([FLUX_GUIDANCE])} if guided else {})
        case other:
            raise TextEncoderError(f"no conditioning is known for a {other}")


def _sdxl(first: ClipAnswer, second: ClipAnswer, index: Fields, side: int) -> dict[str, Tensor]:
    """Join both encoders' last states but one; the second gives the pooled text.

    The published model was trained with zeros in place of a prompt, and says so.
    """
    states = torch.cat([first.penultimate, second.penultimate], dim=-1)
    pooled = _projected(second)
    if index["force_zeros_for_empty_prompt"]:
        states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
    # Original size, upper left corner of the crop, target size: height before width.
    times = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
    return {
        "encoder_hidden_states": states,
        "added_text_embeds": pooled,
        "added_time_ids": times,
    }


def _sd3(first: ClipAnswer, second: ClipAnswer, text: Tensor) -> dict[str, Tensor]:
    """Join the CLIP states, widen them with zeros to T5's, and let T5's tokens follow."""
    states = torch.cat([first.penultimate, second.penultimate], dim=-1)
    wide = torch.nn.functional.pad(states, (0, text.shape[-1] - states.shape[-1]))
    return {
        "encoder_hidden_states": torch.cat([wide, text], dim=1),
        "pooled_projections": torch.cat([_projected(first), _projected(second)], dim=-1),
    }


def _projected(answer: ClipAnswer) -> Tensor:
    if answer.projected is None:
        raise TextEncoderError("the text encoder has no projection, which this family is given")
    return answer.projected
