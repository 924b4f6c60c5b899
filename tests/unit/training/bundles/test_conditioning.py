"""Conditioning of every family, on tiny random text encoders in the published folders' layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from detection.generators.presets import PresetError, find_preset
from tests.support.generators.tiny_text_encoders import (
    HEADS,
    INNER,
    LAYERS,
    clip,
    named,
    write_json,
)
from training.bundles.conditioning import compute_conditioning
from training.bundles.text_encoders import relative_buckets
from worker.cli import build_app
from worker.cli.context import Context

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SIDE = 256


def t5(folder: Path, number: str, *, width: int, shards: int = 1) -> None:
    """Write a T5 encoder of version 1.1, in so many files."""
    encoder = folder / f"text_encoder{number}"
    vocabulary, head = 5, 3
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (vocabulary, width)}
    for block in range(LAYERS):
        at = f"encoder.block.{block}.layer."
        for part in "qkv":
            shapes[f"{at}0.SelfAttention.{part}.weight"] = (HEADS * head, width)
        shapes[f"{at}0.SelfAttention.o.weight"] = (width, HEADS * head)
        for part in ("wi_0", "wi_1"):
            shapes[f"{at}1.DenseReluDense.{part}.weight"] = (INNER, width)
        shapes[f"{at}1.DenseReluDense.wo.weight"] = (width, INNER)
        shapes |= {f"{at}{layer}.layer_norm.weight": (width,) for layer in range(2)}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes |= {bias: (32, HEADS), "encoder.final_layer_norm.weight": (width,)}
    write_json(
        encoder / "config.json",
        architectures=["T5EncoderModel"],
        model_type="t5",
        d_ff=INNER,
        d_kv=head,
        d_model=width,
        eos_token_id=1,
        pad_token_id=0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        layer_norm_epsilon=1e-6,
        num_heads=HEADS,
        num_layers=LAYERS,
        relative_attention_max_distance=128,
        relative_attention_num_buckets=32,
        vocab_size=vocabulary,
    )
    tensors = named(shapes)
    if shards == 1:
        save_file(tensors, encoder / "model.safetensors", metadata={"format": "pt"})
        return
    files = {
        name: f"model-0000{1 + at % shards}-of-0000{shards}.safetensors"
        for at, name in enumerate(tensors)
    }
    for file in set(files.values()):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(part, encoder / file, metadata={"format": "pt"})
    write_json(encoder / "model.safetensors.index.json", metadata={}, weight_map=files)


def sd(folder: Path, *, act: str) -> None:
    """Stable Diffusion 1.5 (quick GELU) or 2.1 (GELU)."""
    clip(folder, act=act)
    write_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")


def sdxl(folder: Path, *, zeros: bool) -> None:
    """SDXL, which says whether zeros stand for an empty prompt."""
    clip(folder, act="quick_gelu")
    clip(folder, "_2", projected=True)
    config = {"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}
    write_json(folder / "unet" / "config.json", **config)
    write_json(folder / "model_index.json", force_zeros_for_empty_prompt=zeros)


def sd3(folder: Path) -> None:
    """Stable Diffusion 3: two CLIPs and T5, sharded."""
    clip(folder, act="quick_gelu", projected=True)
    clip(folder, "_2", projected=True)
    t5(folder, "_3", width=10, shards=2)
    write_json(folder / "transformer" / "config.json", _class_name="SD3Transformer2DModel")


def flux(folder: Path, *, guided: bool) -> None:
    """Flux.1: CLIP's pooled text and T5's tokens."""
    clip(folder, act="quick_gelu")
    t5(folder, "_2", width=10)
    config = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": guided}
    write_json(folder / "transformer" / "config.json", **config)


def fingerprint(tensor: Tensor) -> float:
    """Fold every entry, by its place, into one number."""
    flat = tensor.flatten().double()
    return float(flat @ torch.arange(len(flat), dtype=torch.float64).cos())


#: Folder's family, and what diffusers 0.42 computes on it by `encode_prompt` of the family's
#: pipeline with the networks of transformers 5.23: shape and fingerprint of each tensor.
GOLDEN: list[tuple[str, Any, dict[str, tuple[tuple[int, ...], float]]]] = [
    (
        "sd15",
        lambda folder: sd(folder, act="quick_gelu"),
        {"encoder_hidden_states": ((1, 6, 4), -2.54985)},
    ),
    (
        "sd21",
        lambda folder: sd(folder, act="gelu"),
        {"encoder_hidden_states": ((1, 6, 4), -2.53818)},
    ),
    (
        "sdxl",
        lambda folder: sdxl(folder, zeros=True),
        {"encoder_hidden_states": ((1, 6, 8), 0.0), "added_text_embeds": ((1, 3), 0.0)},
    ),
    (
        "sdxl",
        lambda folder: sdxl(folder, zeros=False),
        {"encoder_hidden_states": ((1, 6, 8), -12.98396), "added_text_embeds": ((1, 3), -0.44365)},
    ),
    (
        "sd3",
        sd3,
        {
            "encoder_hidden_states": ((1, 6 + 256, 10), -4.89624),
            "pooled_projections": ((1, 6), 0.13762),
        },
    ),
    (
        "flux1",
        lambda folder: flux(folder, guided=False),
        {
            "encoder_hidden_states": ((1, 256, 10), -1.60067),
            "pooled_projections": ((1, 4), 0.65271),
        },
    ),
    (
        "flux1",
        lambda folder: flux(folder, guided=True),
        {
            "encoder_hidden_states": ((1, 512, 10), -2.32332),
            "pooled_projections": ((1, 4), 0.65271),
        },
    ),
]


@pytest.mark.parametrize(("name", "write", "expected"), GOLDEN)
def test_the_empty_prompt_is_encoded_as_diffusers_does(
    tmp_path: Path, name: str, write: Any, expected: dict[str, tuple[tuple[int, ...], float]]
) -> None:
    """Every tensor that the preset is called with, equal to its pipeline's own within rounding."""
    write(tmp_path)
    found = compute_conditioning(find_preset(name), side=SIDE, folder=tmp_path)
    for tensor, (shape, value) in expected.items():
        assert found[tensor].shape == shape
        assert found[tensor].dtype == torch.float32
        assert fingerprint(found[tensor]) == pytest.approx(value, abs=1e-3)
    assert found.keys() - {"guidance"} == set(find_preset(name).conditioning)


def test_sdxl_is_told_the_size_of_the_views_and_flux_its_guidance(tmp_path: Path) -> None:
    """Time ids are height and width, corner, height and width; 3.5 is for distilled guidance."""
    sdxl(tmp_path / "sdxl", zeros=True)
    told = compute_conditioning(find_preset("sdxl"), side=SIDE, folder=tmp_path / "sdxl")
    assert told["added_time_ids"].tolist() == [[256, 256, 0, 0, 256, 256]]
    for guided in (True, False):
        folder = tmp_path / f"guided-{guided}"
        flux(folder, guided=guided)
        found = compute_conditioning(find_preset("flux1"), side=SIDE, folder=folder)
        assert ("guidance" in found) == guided
        assert not guided or found["guidance"].tolist() == [3.5]


def test_distances_fall_into_buckets_that_widen() -> None:
    """By the definition, worked out for each pair of positions alone."""
    found = relative_buckets(300, 32, 128)
    for query, key in np.random.default_rng(0).integers(0, 300, (400, 2)).tolist():
        after, distance = key > query, abs(key - query)
        bucket = distance
        if distance >= 8:
            bucket = min(15, 8 + int(np.log(distance / 8) / np.log(128 / 8) * 8))
        assert found[query, key] == bucket + 16 * after


def test_the_command_writes_what_a_bundle_carries(tmp_path: Path) -> None:
    """One file of float tensors by the names that `presets show` prints, each of one row."""
    sd3(tmp_path / "sd3")
    out = tmp_path / "sd3.safetensors"
    command = ["presets", "condition", "sd3", "--folder", str(tmp_path / "sd3"), "--out", str(out)]
    answer = CliRunner().invoke(build_app(), command, obj=Context())
    assert answer.exit_code == 0, answer.output
    assert "encoder_hidden_states (1, 262, 10)" in answer.output
    kept = load_file(out)
    assert kept.keys() == set(find_preset("sd3").conditioning)
    assert all(len(tensor) == 1 for tensor in kept.values())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Preset, repository, folder and file or tensor; an autoencoder alone takes nothing."""
    preset = find_preset("sd3")

    def fails(match: str) -> None:
        with pytest.raises(PresetError, match=match) as raised:
            compute_conditioning(preset, side=SIDE, folder=tmp_path)
        assert preset.repository in str(raised.value)
        assert str(tmp_path) in str(raised.value)

    fails(r"transformer/config\.json cannot be read")
    write_json(tmp_path / "transformer" / "config.json", _class_name="PixArtTransformer2DModel")
    fails("no conditioning is known for a PixArt")
    sd3(tmp_path)
    (tmp_path / "text_encoder_3" / "model-00002-of-00002.safetensors").unlink()
    fails(r"cannot be read from .*model-00002")
    sd3(tmp_path)
    clip(tmp_path)
    fails("has no projection")
    (tmp_path / "tokenizer_2" / "vocab.json").unlink()
    fails(r"tokenizer_2/vocab\.json")
    with pytest.raises(PresetError, match="taesd has no predictor"):
        compute_conditioning(find_preset("taesd"), side=SIDE)
    with pytest.raises(PresetError, match="presets pin sd3"):
        compute_conditioning(preset, side=SIDE)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_snapshot_fetches_the_text_encoders_alone(variant: str | None) -> None:
    """Of the files of the published repositories: one variant, sharded too, and no generator."""
    plain = [
        "text_encoder/model.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.json",
    ]
    halved = [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.fp16.json",
    ]
    always = [
        "model_index.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "transformer/config.json",
    ]
    never = [
        "safety_checker/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
    ]
    patterns = find_preset("sd3").text_patterns(variant)
    fetched = filter_repo_objects([*plain, *halved, *always, *never], allow_patterns=patterns)
    assert set(fetched) == {*always, *(halved if variant else plain)}
