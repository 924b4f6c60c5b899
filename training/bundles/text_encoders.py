"""Runs the published generators' text encoders (CLIP, T5) on an empty prompt.

Only that one prompt is needed, once for each preset, so no tokenizer and no library of language
models is: an empty prompt is a beginning, an end and padding. Weights are read where a layer needs
them, so that an encoder of five billion parameters does not have to fit into memory. Arithmetic is
float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from detection.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


#: Name of the norm behind CLIP's last layer.
CLIP_NORM = "final_layer_norm"


class TextEncoderError(SettingsError):
    """A text encoder's folder is incomplete, or holds another kind of network."""


class Fields(dict[str, Any]):
    """The object in a file of a published folder; a field that is not there is a clear error."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._file = file

    def __missing__(self, name: str) -> Any:
        raise TextEncoderError(f"{self._file} lacks {name}")


@dataclass(frozen=True, slots=True)
class ClipAnswer:
    """Hidden states (1, T, D) after the last layer but one, and after the last and its norm.

    `pooled` is the last state at the end of the prompt (1, D), `projected` the same through the
    text projection (1, P) where there is one.
    """

    penultimate: Tensor
    last: Tensor
    pooled: Tensor
    projected: Tensor | None


class Weights:
    """Tensors of one encoder's folder by name, whole or sharded, plain or of a variant."""

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        self._folder = folder
        index = folder / f"model.safetensors.index{f'.{variant}' if variant else ''}.json"
        if index.is_file():
            self._files: dict[str, str] = read_json(index)["weight_map"]
            return
        whole = f"model{f'.{variant}' if variant else ''}.safetensors"
        try:
            with safe_open(folder / whole, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), whole)
        except (OSError, SafetensorError) as error:
            raise TextEncoderError(f"{folder / whole} cannot be read: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise TextEncoderError(f"the weights in {self._folder} lack {name}")
        path = self._folder / self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise TextEncoderError(f"{name} cannot be read from {path}: {error}") from error
        return tensor.float()

    def linear(self, name: str, features: Tensor) -> Tensor:
        """Apply the layer called `name`, with its bias where it has one."""
        bias = [self[f"{name}.bias"]] if f"{name}.bias" in self else []
        return functional.linear(features, self[f"{name}.weight"], *bias)

    def heads(self, name: str, features: Tensor, count: int) -> Tensor:
        """Apply a projection of attention: (B, T, D) to (B, count, T, D / count)."""
        split: Tensor = self.linear(name, features).unflatten(2, (count, -1))
        return split.transpose(1, 2)

    def norm(self, name: str, features: Tensor, epsilon: float) -> Tensor:
        """Apply the layer normalisation called `name`."""
        scale, shift = self[f"{name}.weight"], self[f"{name}.bias"]
        return functional.layer_norm(features, scale.shape, scale, shift, epsilon)


@torch.inference_mode()
def clip_answer(encoder: Path, tokenizer: Path, variant: str | None = None) -> ClipAnswer:
    """Encode the empty prompt by the CLIP text encoder and tokenizer in these folders.

    Raises `TextEncoderError` naming the file or the tensor that is missing.
    """
    config, weights = read_json(encoder / "config.json"), Weights(encoder, variant)
    tokens = empty_clip_tokens(tokenizer)
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]
    # Newer releases of the library that saves these folders leave the prefix out.
    prefix = "text_model." if f"text_model.{CLIP_NORM}.weight" in weights else ""
    hidden = weights[f"{prefix}embeddings.token_embedding.weight"][tokens]
    hidden = hidden + weights[f"{prefix}embeddings.position_embedding.weight"][: len(tokens)]
    hidden = penultimate = hidden[None]
    for layer in range(config["num_hidden_layers"]):
        name, penultimate = f"{prefix}encoder.layers.{layer}", hidden
        normed = weights.norm(f"{name}.layer_norm1", hidden, epsilon)
        query, key, value = (
            weights.heads(f"{name}.self_attn.{part}_proj", normed, heads) for part in "qkv"
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + weights.linear(
            f"{name}.self_attn.out_proj", attended.transpose(1, 2).flatten(2)
        )
        inner = weights.linear(
            f"{name}.mlp.fc1", weights.norm(f"{name}.layer_norm2", hidden, epsilon)
        )
        hidden = hidden + weights.linear(f"{name}.mlp.fc2", _clip_activation(config, inner))
    last = weights.norm(f"{prefix}{CLIP_NORM}", hidden, epsilon)
    # The end of an empty prompt is its second token.
    pooled = last[:, 1]
    projected = None
    if "text_projection.weight" in weights:
        projected = weights.linear("text_projection", pooled)
    return ClipAnswer(penultimate, last, pooled, projected)


def empty_clip_tokens(tokenizer: Path) -> Tensor:
    """Return the empty prompt's token ids (T,): beginning, end, and padding to the longest."""
    vocabulary = read_json(tokenizer / "vocab.json")
    settings = read_json(tokenizer / "tokenizer_config.json")
    special = tokenizer / "special_tokens_map.json"
    named = read_json(special) if special.is_file() else settings

    def token(role: str) -> int:
        text = named[role]
        return int(vocabulary[text["content"] if isinstance(text, dict) else text])

    padding = [token("pad_token")] * (int(settings["model_max_length"]) - 2)
    return torch.tensor([token("bos_token"), token("eos_token"), *padding])


def _clip_activation(config: Fields, features: Tensor) -> Tensor:
    match config["hidden_act"]:
        case "quick_gelu":
            return features * torch.sigmoid(1.702 * features)
        case "gelu":
            return functional.gelu(features)
        case other:
            raise TextEncoderError(f"a CLIP text encoder with the activation {other!r} is unknown")


@torch.inference_mode()
def t5_answer(encoder: Path, length: int, variant: str | None = None) -> Tensor:
    """Encode the empty prompt, padded to `length` tokens that all take part: (1, length, D).

    T5 version 1.1 (arXiv 1910.10683 with gated GELU): norms without mean or shift, attention
    without scaling, and one relative position bias, the first layer's, for every layer. Raises
    `TextEncoderError` naming the file or the tensor that is missing.
    """
    config, weights = read_json(encoder / "config.json"), Weights(encoder, variant)
    if config["feed_forward_proj"] != "gated-gelu":
        raise TextEncoderError(f"{encoder} holds no T5 of version 1.1, whose layers are gated")
    heads, epsilon = config["num_heads"], config["layer_norm_epsilon"]
    tokens = [config["eos_token_id"]] + [config["pad_token_id"]] * (length - 1)

    def norm(name: str, features: Tensor) -> Tensor:
        return functional.rms_norm(
            features, features.shape[-1:], weights[f"{name}.weight"], epsilon
        )

    hidden = weights["shared.weight"][torch.tensor(tokens)][None]
    bias = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    biases = bias[relative_buckets(length, len(bias), config["relative_attention_max_distance"])]
    biases = biases.permute(2, 0, 1)
    for block in range(config["num_layers"]):
        name = f"encoder.block.{block}.layer.0"
        normed = norm(f"{name}.layer_norm", hidden)
        query, key, value = (
            weights.heads(f"{name}.SelfAttention.{part}", normed, heads) for part in "qkv"
        )
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=biases, scale=1.0
        )
        hidden = hidden + weights.linear(
            f"{name}.SelfAttention.o", attended.transpose(1, 2).flatten(2)
        )
        name = f"encoder.block.{block}.layer.1"
        normed = norm(f"{name}.layer_norm", hidden)
        gate = weights.linear(f"{name}.DenseReluDense.wi_0", normed)
        gated = functional.gelu(gate, approximate="tanh") * weights.linear(
            f"{name}.DenseReluDense.wi_1", normed
        )
        hidden = hidden + weights.linear(f"{name}.DenseReluDense.wo", gated)
    return norm("encoder.final_layer_norm", hidden)


def relative_buckets(length: int, buckets: int, farthest: int) -> Tensor:
    """Number the distances of every position to every other: integers (length, length).

    Half of the buckets are for positions before, half for those after; of each half, half are for
    single distances, and the rest widen logarithmically up to `farthest`.
    """
    places = torch.arange(length)
    offsets = places[None] - places[:, None]
    half, distances = buckets // 2, offsets.abs()
    single = half // 2
    far = torch.log(distances.clamp(min=1) / single) / torch.log(torch.tensor(farthest / single))
    wide = (single + (far * (half - single)).long()).clamp(max=half - 1)
    found: Tensor = torch.where(distances < single, distances, wide) + half * (offsets > 0)
    return found


def read_json(file: Path) -> Fields:
    """Read an object; raises `TextEncoderError` when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TextEncoderError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise TextEncoderError(f"{file} does not hold an object")
    return Fields(file, content)
