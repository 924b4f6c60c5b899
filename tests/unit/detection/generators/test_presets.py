"""Presets on tiny random folders that diffusers' own classes saved, every family."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    VQModel,
)

from detection.generators.generator import Generator, noise_bank
from detection.generators.loading import GeneratorError, load_generator_folder
from detection.generators.noise_schedule import FLOW, noise_schedule_from_scheduler
from detection.generators.predictors import pack, positions, required_conditioning, unpack
from detection.generators.presets import (
    PRESETS,
    PresetError,
    find_preset,
    load_preset,
    pin,
    pinned_revision,
)
from detection.lare import lare_map
from tests.support.bundles.tiny_bundle import tiny_autoencoder
from tests.support.generators.autoencoder_references import build
from tests.support.generators.tiny_families import FAMILIES, POOLED, TEXT, flux, save_family

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

VIEWS = noise_bank((2, 3, 32, 32), seed=0).clamp(-1, 1)
AUTOENCODERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "AutoencoderKL": (tiny_autoencoder, 4),
    "AutoencoderTiny": (
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(4, 4, 4),
            decoder_block_out_channels=(4, 4, 4),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        ),
        4,
    ),
    "VQModel": (
        lambda: VQModel(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            num_vq_embeddings=16,
            norm_num_groups=2,
        ),
        2,
    ),
    "AutoencoderDC": (
        lambda: AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(4, 8, 8),
            decoder_block_out_channels=(4, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.4,
        ),
        4,
    ),
}


def shift_of(predictor: nn.Module) -> nn.Module:
    """Randomise what initialisation left at zero, so that conditioning can act."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return predictor


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_an_error_map(tmp_path: Path, name: str) -> None:
    """A folder of each preset's family loads by diffusers' code and maps (C, H/f, W/f)."""
    constants = save_family(tmp_path, name)
    preset = find_preset(name)
    assert set(constants) == set(preset.conditioning)
    generator = load_preset(preset, folder=tmp_path, conditioning=constants)
    assert generator.capabilities == preset.capabilities == ("reconstruct", "lare")
    assert generator.predictor is not None
    assert required_conditioning(generator.predictor) == set(preset.conditioning)
    with torch.inference_mode():
        latents = generator.encode(VIEWS)
        assert latents.shape == (2, 4, 8, 8)
        assert generator.decode(latents).shape == VIEWS.shape
        errors = lare_map(generator, VIEWS, noise_bank((2, 4, 8, 8), seed=3), 200)
    assert errors.shape == (2, 4, 8, 8)
    assert errors.dtype == torch.float32
    assert torch.isfinite(errors).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_conditioning_reaches_the_network(tmp_path: Path, name: str) -> None:
    """Changing any one constant tensor changes the prediction; leaving one out is an error."""
    constants = save_family(tmp_path, name)
    loaded = load_preset(find_preset(name), folder=tmp_path)
    assert loaded.predictor is not None
    predictor = shift_of(loaded.predictor)
    noised = noise_bank((2, 4, 8, 8), seed=4)

    def predict(given: dict[str, Tensor]) -> Tensor:
        generator = Generator(loaded.autoencoder, predictor, loaded.schedule, given)
        with torch.inference_mode():
            return generator.predict(noised, 200)

    before = predict(constants)
    for key, value in constants.items():
        assert not torch.allclose(before, predict(constants | {key: value + 1}), atol=1e-6)
        fewer = {other: tensor for other, tensor in constants.items() if other != key}
        with pytest.raises(Exception, match=f"needs the conditioning {key}"):
            predict(fewer)


def test_flux_is_called_on_patches_with_their_positions() -> None:
    """A token is a 2 x 2 patch, channels outermost; steps count from 0 to 1; guidance is passed."""
    latents = noise_bank((2, 4, 6, 8), seed=5)
    places = [(row, column) for row in range(3) for column in range(4)]
    tokens = torch.stack(
        [
            torch.stack(
                [
                    latents[:, c, 2 * row + i, 2 * column + j]
                    for c in range(4)
                    for i in range(2)
                    for j in range(2)
                ],
                dim=1,
            )
            for row, column in places
        ],
        dim=1,
    )
    torch.testing.assert_close(pack(latents), tokens)
    torch.testing.assert_close(unpack(tokens, 6, 8), latents)
    assert positions(6, 8).tolist() == [[0, row, column] for row, column in places]
    network, scheduler, constants = flux(guidance=True)
    schedule = noise_schedule_from_scheduler(
        {"_class_name": type(scheduler).__name__, **scheduler.config}
    )
    assert schedule.prediction == FLOW
    generator = Generator(tiny_autoencoder(), shift_of(network), schedule, constants)
    with torch.inference_mode():
        expected = network(
            hidden_states=tokens,
            timestep=torch.full((2,), 0.2),
            guidance=torch.full((2,), 3.5),
            pooled_projections=POOLED.expand(2, -1),
            encoder_hidden_states=TEXT.expand(2, -1, -1),
            txt_ids=torch.zeros(3, 3),
            img_ids=positions(6, 8),
        ).sample
        torch.testing.assert_close(generator.predict(latents, 200), unpack(expected, 6, 8))
    with pytest.raises(Exception, match="even sides"):
        pack(latents[..., :7])


def test_a_learned_variance_is_cut_off() -> None:
    """PixArt predicts twice the channels; the answer has the latents' own."""
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=8,
        sample_size=8,
        caption_channels=8,
        use_additional_conditions=False,
        norm_num_groups=1,
    )
    schedule = noise_schedule_from_scheduler(DDPMScheduler().config)
    generator = Generator(tiny_autoencoder(), network, schedule, {"encoder_hidden_states": TEXT})
    noised = noise_bank((2, 4, 8, 8), seed=4)
    with torch.inference_mode():
        assert generator.predict(noised, 10).shape == noised.shape


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_kind_of_autoencoder_round_trips_in_shape(tmp_path: Path, name: str) -> None:
    """KL, Tiny, VQ and DC autoencoders scale and shift alike; f is their configuration's."""
    build, factor = AUTOENCODERS[name]
    torch.manual_seed(0)
    autoencoder = build()
    autoencoder.save_pretrained(tmp_path / "vae")
    generator = load_generator_folder(tmp_path)
    assert generator.capabilities == ("reconstruct",)
    assert generator.factor == factor
    with torch.inference_mode():
        encoded = autoencoder.eval().encode(VIEWS)
        raw = {
            "AutoencoderKL": lambda: encoded.latent_dist.mean,
            "AutoencoderTiny": lambda: encoded.latents,
            "VQModel": lambda: encoded.latents,
            "AutoencoderDC": lambda: encoded.latent,
        }[name]()
        config = autoencoder.config
        expected = (raw - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        latents = generator.eval().encode(VIEWS)
        torch.testing.assert_close(latents, expected)
        assert latents.shape == (2, 4, 32 // factor, 32 // factor)
        restored = generator.decode(latents)
    assert restored.shape == VIEWS.shape
    assert restored.abs().max() <= 1


def test_a_tiny_autoencoder_may_be_the_folder_itself(tmp_path: Path) -> None:
    """The tiny presets keep their one model at the top of the repository."""
    AUTOENCODERS["AutoencoderTiny"][0]().save_pretrained(tmp_path)
    generator = load_preset(find_preset("taesd"), folder=tmp_path)
    assert generator.capabilities == ("reconstruct",)
    assert generator.decode(generator.encode(VIEWS)).shape == VIEWS.shape


@pytest.mark.parametrize(
    ("name", "reference", "folder"),
    [
        ("flux2", "flux2", "vae"),
        ("qwen", "qwen", "vae"),
        ("wan", "wan-2.1", "vae"),
        ("cascade", "stage-a", "vqgan"),
    ],
)
def test_a_preset_without_a_predictor_reconstructs(
    tmp_path: Path, name: str, reference: str, folder: str
) -> None:
    """Its repository has a predictor that is not fetched; only the autoencoder's folder is."""
    from huggingface_hub.utils import filter_repo_objects

    build(reference).save_pretrained(tmp_path / folder)
    (tmp_path / "transformer").mkdir()
    preset = find_preset(name)
    generator = load_preset(preset, folder=tmp_path)
    assert generator.capabilities == preset.capabilities == ("reconstruct",)
    with torch.inference_mode():
        assert generator.decode(generator.encode(VIEWS)).shape == VIEWS.shape
    names = [f"{folder}/config.json", f"{folder}/diffusion_pytorch_model.safetensors"]
    more = ["transformer/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"]
    patterns = preset.patterns(predictor=False, variant=None)
    assert list(filter_repo_objects([*names, *more], allow_patterns=patterns)) == names


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_sharded_and_variant_files_load(tmp_path: Path, variant: str | None, shard: str) -> None:
    """Index files, shards and variants give the same weights as one plain file."""
    save_family(tmp_path / "plain", "sd15")
    constants = save_family(tmp_path / "other", "sd15", variant=variant, max_shard_size=shard)
    names = [path.name for path in (tmp_path / "other" / "unet").iterdir()]
    assert any("-of-" in name for name in names) == (shard == "8KB")
    assert any("fp16" in name for name in names) == (variant == "fp16")
    preset = find_preset("sd15")
    plain = load_preset(preset, folder=tmp_path / "plain", conditioning=constants)
    other = load_preset(preset, folder=tmp_path / "other", conditioning=constants, variant=variant)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_a_hub_snapshot_fetches_every_needed_file(
    tmp_path: Path, variant: str | None, shard: str
) -> None:
    """The patterns match each file of the chosen variant, and no weights of the other."""
    from huggingface_hub.utils import filter_repo_objects

    save_family(tmp_path, "sd15", max_shard_size=shard)
    save_family(tmp_path, "sd15", max_shard_size=shard, variant="fp16")
    names = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    (tmp_path / "model_index.json").touch()
    patterns = find_preset("sd15").patterns(predictor=True, variant=variant)
    fetched = set(filter_repo_objects(names, allow_patterns=patterns))
    wanted = {name for name in names if ("fp16" in name) == bool(variant)}
    needed = wanted | {name for name in names if name.endswith("config.json")}
    assert fetched >= needed
    assert not {n for n in fetched - needed if n.endswith(".safetensors")}
    alone = find_preset("sd15").patterns(predictor=False, variant=variant)
    assert all(n.startswith("vae/") for n in filter_repo_objects(names, allow_patterns=alone))


def cached(cache: Path, preset_name: str, revision: str, source: Path) -> None:
    """Lay a folder out as the hub's cache keeps a snapshot."""
    repository = PRESETS[preset_name].repository.replace("/", "--")
    target = cache / f"models--{repository}" / "snapshots" / revision
    target.parent.mkdir(parents=True)
    source.rename(target)


def test_a_pinned_preset_loads_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is read at the pinned revision; another revision is an error that says all."""
    from huggingface_hub import constants as hub

    revision = "0123456789abcdef0123456789abcdef01234567"
    constants = save_family(tmp_path / "sd15", "sd15")
    cached(tmp_path / "cache", "sd15", revision, tmp_path / "sd15")
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache")
    )
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    preset = find_preset("sd15")
    generator = load_preset(
        preset, revision=revision, conditioning=constants, local_files_only=True
    )
    assert generator.capabilities == ("reconstruct", "lare")
    with pytest.raises(PresetError) as raised:
        load_preset(preset, revision="f" * 40, local_files_only=True)
    for word in ("sd15", preset.repository, "f" * 40, str(tmp_path / "cache")):
        assert word in str(raised.value)


def test_an_unpinned_preset_is_not_fetched() -> None:
    """Without a revision and without a folder, the error says how to get one."""
    with pytest.raises(PresetError, match="presets pin flux1"):
        load_preset(find_preset("flux1"))


def test_pinning_records_what_the_hub_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision in the file is the hub's; other pins stay; another repository's is not ours."""
    from huggingface_hub import HfApi

    class Info:
        sha = "a" * 40

    pins = tmp_path / "deep" / "pins.json"
    monkeypatch.setattr(HfApi, "model_info", lambda _self, _repository: Info())
    assert pinned_revision(find_preset("sd15"), pins) is None
    assert pin(find_preset("sd15"), pins) == "a" * 40
    assert pin(find_preset("taesd"), pins) == "a" * 40
    assert pinned_revision(find_preset("sd15"), pins) == "a" * 40
    content = json.loads(pins.read_text())
    content["sd15"]["repository"] = "somebody/else"
    pins.write_text(json.dumps(content))
    assert pinned_revision(find_preset("sd15"), pins) is None
    pins.write_text("[")
    with pytest.raises(PresetError, match="cannot be read"):
        pinned_revision(find_preset("sd15"), pins)


def test_a_hub_that_does_not_answer_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated repository's refusal says that its terms must be accepted, and writes no pin."""
    from huggingface_hub import HfApi

    def refuse(_self: HfApi, _repository: str) -> None:
        raise OSError("401 Unauthorized\nmore")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(PresetError, match=r"sd3 \(.*401 Unauthorized \(it is gated"):
        pin(find_preset("sd3"), tmp_path / "pins.json")
    assert not (tmp_path / "pins.json").exists()


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    """Each fault of a folder ends in one error with preset, repository, revision and folder."""
    preset = find_preset("sd15")
    folder = tmp_path / "sd15"

    def fails(match: str, **options: Any) -> None:
        with pytest.raises(PresetError, match=match) as raised:
            load_preset(preset, folder=folder, revision="b" * 40, **options)
        assert all(
            word in str(raised.value) for word in ("sd15", preset.repository, "b" * 40, str(folder))
        )

    fails("no such folder")
    folder.mkdir()
    fails("config.json is missing")
    save_family(folder, "sd21")
    fails("predicts v_prediction")
    save_family(folder, "sd15")
    fails("cannot be loaded", variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    fails("unet cannot be loaded")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({"_class_name": "AutoencoderOobleck"}))
    fails("holds a AutoencoderOobleck")
    config.write_text("{")
    fails("cannot be read")
    with pytest.raises(PresetError, match="not called with prompt"):
        load_preset(preset, folder=folder, conditioning={"prompt": TEXT})
    with pytest.raises(PresetError, match=r"no preset named 'sd9': there are sd15"):
        find_preset("sd9")


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    """A folder whose only weights are a pickle is refused."""
    tiny_autoencoder().save_pretrained(tmp_path / "vae", safe_serialization=False)
    assert list((tmp_path / "vae").glob("*.bin"))
    with pytest.raises(GeneratorError, match="cannot be loaded"):
        load_generator_folder(tmp_path)


def test_the_process_is_the_schedulers() -> None:
    """Variance-preserving levels equal diffusers' own `add_noise` and velocity; flow is linear."""
    latents, noise = noise_bank((2, 4, 8, 8), seed=6), noise_bank((2, 4, 8, 8), seed=7)
    step = torch.full((2,), 200)
    for options in (
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ):
        scheduler = DDPMScheduler(**options)
        noised, target = noise_schedule_from_scheduler(scheduler.config).add_noise(
            latents, noise, 200
        )
        torch.testing.assert_close(noised, scheduler.add_noise(latents, noise, step))
        wanted = (
            scheduler.get_velocity(latents, noise, step) if "prediction_type" in options else noise
        )
        torch.testing.assert_close(target, wanted)
    flow = noise_schedule_from_scheduler(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    at = scheduler.timesteps[800:801]
    assert float(at) == 200
    noised, target = flow.add_noise(latents, noise, 200)
    torch.testing.assert_close(noised, scheduler.scale_noise(latents, at, noise))
    np.testing.assert_allclose(target.numpy(), (noise - latents).numpy())
    with pytest.raises(Exception, match="'sample' is not supported"):
        noise_schedule_from_scheduler({"prediction_type": "sample"})
    assert isinstance(tiny_autoencoder(), AutoencoderKL)
