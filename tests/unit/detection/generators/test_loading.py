"""The layouts that a generator's folder may have, and what is said where something is missing."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from detection.generators.generator import noise_bank
from detection.generators.loading import GeneratorError, load_generator_folder
from tests.support.bundles.tiny_bundle import tiny_autoencoder
from tests.support.generators.autoencoder_references import REFERENCES, build
from tests.support.generators.tiny_families import save_family

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

VIEWS = noise_bank((1, 3, 32, 32), seed=0).clamp(-1, 1)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def original_name(name: str, blocks: int) -> str:
    """Name a tensor of `AutoencoderKL` as CompVis' latent diffusion does."""

    def up(match: re.Match[str]) -> str:
        return f"up.{blocks - 1 - int(match[1])}."

    name = re.sub(r"up_blocks\.(\d+)\.", up, name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in (
        ("down_blocks.", "down."),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("resnets.", "block."),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
    ):
        name = name.replace(ours, theirs)
    return name


def as_single_file(folder: Path, file: str, *, original: bool) -> None:
    """Save the tiny autoencoder's configuration, and its weights in one file of another name."""
    tiny_autoencoder().save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if original:
        tensors = {original_name(name, 3): value for name, value in tensors.items()}
        for name, value in tensors.items():
            if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
                tensors[name] = value[:, :, None, None]
    save_file(tensors, folder / file)


def shown(folder: Path) -> Tensor:
    """Send a view through the autoencoder of a folder."""
    generator = load_generator_folder(folder)
    with torch.inference_mode():
        return generator.decode(generator.encode(VIEWS))


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("part", ["vae", ""])
def test_a_single_file_with_a_local_configuration_loads(
    tmp_path: Path, part: str, *, original: bool
) -> None:
    """One file beside `config.json` gives the same images, by diffusers' names or CompVis'."""
    tiny_autoencoder().save_pretrained(tmp_path / "plain" / "vae")
    as_single_file(tmp_path / "single" / part, "kl-f4.safetensors", original=original)
    torch.testing.assert_close(shown(tmp_path / "single"), shown(tmp_path / "plain"))


def test_a_single_file_without_all_tensors_is_refused(tmp_path: Path) -> None:
    """A file that lacks a tensor, or has names that nothing converts, is not filled at random."""
    as_single_file(tmp_path, "kl-f4.safetensors", original=True)
    file = tmp_path / "kl-f4.safetensors"
    tensors = load_file(file)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, file)
    with pytest.raises(GeneratorError, match=r"AutoencoderKL: .*decoder\.conv_in\.bias"):
        load_generator_folder(tmp_path)
    build("flux2").save_pretrained(tmp_path / "flux2")
    (tmp_path / "flux2" / WEIGHTS).unlink()
    save_file({"first": torch.zeros(1)}, tmp_path / "flux2" / "ae.safetensors")
    with pytest.raises(GeneratorError, match=r"cannot convert ae\.safetensors"):
        load_generator_folder(tmp_path / "flux2")


@pytest.mark.parametrize("name", REFERENCES)
def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path, name: str) -> None:
    """Diffusers would leave the tensor random and only warn; here the folder is refused."""
    build(name).save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / WEIGHTS
    tensors = load_file(file)
    dropped = min(tensors)
    del tensors[dropped]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(GeneratorError, match=rf"the weights lack {re.escape(dropped)} \(1 in all"):
        load_generator_folder(tmp_path)


@pytest.mark.parametrize(("variant", "shard"), [("fp16", "10GB"), (None, "8KB"), ("fp16", "8KB")])
def test_variant_and_sharded_autoencoders_load(
    tmp_path: Path, variant: str | None, shard: str
) -> None:
    """An autoencoder in variant files or in shards gives what one plain file gives."""
    autoencoder = build("flux2")
    autoencoder.save_pretrained(tmp_path / "plain")
    autoencoder.save_pretrained(tmp_path / "other", variant=variant, max_shard_size=shard)
    other = load_generator_folder(tmp_path / "other", variant=variant)
    plain = load_generator_folder(tmp_path / "plain")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


def test_a_missing_or_nameless_noise_schedule_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A predictor without its scheduler's configuration is not given another's."""
    save_family(tmp_path, "sd15")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.unlink()
    with pytest.raises(GeneratorError) as raised:
        load_generator_folder(tmp_path)
    assert f"{file} is missing" in str(raised.value)
    assert "noise schedule" in str(raised.value)
    assert str(tmp_path / "unet") in str(raised.value)
    assert load_generator_folder(tmp_path, predictor=False).capabilities == ("reconstruct",)
    file.write_text(json.dumps({"beta_start": 0.1}))
    with pytest.raises(GeneratorError, match="names no scheduler"):
        load_generator_folder(tmp_path)
    file.write_text(json.dumps({**config, "_class_name": "ScoreSdeVeScheduler"}))
    with pytest.raises(GeneratorError) as raised:
        load_generator_folder(tmp_path)
    assert f"{file} cannot be used: the noise schedule of ScoreSdeVeScheduler" in str(raised.value)
