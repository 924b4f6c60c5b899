"""Tiny random text encoders, as the repositories of the presets are laid out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

WIDTH, HEADS, LAYERS, INNER, PROJECTION = 4, 2, 2, 12, 3
WORDS = ["!", "<|startoftext|>", "<|endoftext|>", "a</w>"]


def drawn(name: str, *shape: int) -> Tensor:
    """Weights that depend on their name alone; a norm's scale is near one, as trained ones are."""
    seed = int.from_bytes(name.encode(), "little") % 2**32
    values = np.random.default_rng(seed).normal(0, 0.5, shape)
    return torch.from_numpy(values + ("norm" in name and name.endswith("weight"))).float()


def named(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw each tensor."""
    return {name: drawn(name, *shape) for name, shape in shapes.items()}


def write_json(file: Path, **content: Any) -> None:
    """Write one of the folder's configurations."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def clip(
    folder: Path,
    number: str = "",
    *,
    projected: bool = False,
    act: str = "gelu",
    width: int = WIDTH,
) -> None:
    """Write a CLIP text encoder and its tokenizer; the first of a folder pads with its end."""
    encoder, tokenizer = folder / f"text_encoder{number}", folder / f"tokenizer{number}"
    tokens = 6
    inner = "text_model.encoder.layers.{}."
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (len(WORDS), width),
        "text_model.embeddings.position_embedding.weight": (tokens, width),
    }
    for layer in range(LAYERS):
        at = inner.format(layer)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{at}self_attn.{part}.weight"] = (width, width)
            shapes[f"{at}self_attn.{part}.bias"] = (width,)
        shapes |= {f"{at}mlp.fc1.weight": (INNER, width), f"{at}mlp.fc1.bias": (INNER,)}
        shapes |= {f"{at}mlp.fc2.weight": (width, INNER), f"{at}mlp.fc2.bias": (width,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{at}{norm}.weight": (width,), f"{at}{norm}.bias": (width,)}
    for end in ("weight", "bias"):
        shapes[f"text_model.final_layer_norm.{end}"] = (width,)
    if projected:
        shapes["text_projection.weight"] = (PROJECTION, width)
    write_json(
        encoder / "config.json",
        architectures=["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        model_type="clip_text_model",
        hidden_act=act,
        hidden_size=width,
        intermediate_size=INNER,
        layer_norm_eps=1e-5,
        max_position_embeddings=tokens,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        projection_dim=PROJECTION,
        vocab_size=len(WORDS),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    save_file(named(shapes), encoder / "model.safetensors", metadata={"format": "pt"})
    roles = {"bos_token": {"content": WORDS[1]}, "eos_token": {"content": WORDS[2]}}
    roles |= {"pad_token": WORDS[0] if number else WORDS[2], "unk_token": WORDS[2]}
    write_json(tokenizer / "vocab.json", **{word: index for index, word in enumerate(WORDS)})
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    write_json(tokenizer / "special_tokens_map.json", **roles)
    write_json(
        tokenizer / "tokenizer_config.json",
        tokenizer_class="CLIPTokenizer",
        model_max_length=tokens,
        **{
            role: text if isinstance(text, str) else text["content"] for role, text in roles.items()
        },
    )
