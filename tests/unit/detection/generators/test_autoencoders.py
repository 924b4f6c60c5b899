"""Every adapter on tiny random weights against the pipeline of its family in diffusers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import diffusers.models.autoencoders
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin

from detection.errors import SettingsError
from detection.generators.autoencoders import ADAPTERS, REFUSED_AUTOENCODERS, latent_space
from detection.generators.generator import Generator, noise_bank
from detection.generators.loading import GeneratorError, load_generator_folder
from tests.support.generators.autoencoder_references import REFERENCES, build

if TYPE_CHECKING:
    from pathlib import Path

VIEWS = noise_bank((2, 3, 32, 48), seed=0).clamp(-1, 1)
#: Where each repository keeps its autoencoder, of those that do not name it `vae`.
FOLDERS = {"vq": "vqvae", "movq": "movq", "stage-a": "vqgan", "tiny": ""}


@pytest.mark.parametrize("name", REFERENCES)
def test_latents_and_round_trip_are_the_pipelines(tmp_path: Path, name: str) -> None:
    """A saved autoencoder loads; its latents and images equal what its pipeline computes."""
    reference, autoencoder = REFERENCES[name], build(name)
    autoencoder.save_pretrained(tmp_path / FOLDERS.get(name, "vae"))
    generator = load_generator_folder(tmp_path)
    assert type(generator.autoencoder).__name__ == reference.autoencoder
    assert generator.capabilities == ("reconstruct",)
    assert generator.factor == reference.factor
    with torch.inference_mode():
        latents = generator.encode(VIEWS)
        torch.testing.assert_close(latents, reference.encode(autoencoder, VIEWS))
        height, width = (side // reference.factor for side in VIEWS.shape[-2:])
        assert latents.shape == (2, reference.channels, height, width)
        restored = generator.decode(latents)
        expected = reference.decode(autoencoder, latents).clamp(-1, 1)
    torch.testing.assert_close(restored, expected)
    assert restored.shape == VIEWS.shape
    assert restored.std() > 0.01


@pytest.mark.parametrize("name", REFERENCES)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    """Encoded and decoded alone, an image is what it is in a batch."""
    generator = Generator(build(name))
    with torch.inference_mode():
        latents = generator.encode(VIEWS)
        alone = torch.cat([generator.encode(view[None]) for view in VIEWS])
        torch.testing.assert_close(alone, latents, rtol=1e-4, atol=1e-5)
        images = torch.cat([generator.decode(one[None]) for one in latents])
        torch.testing.assert_close(images, generator.decode(latents), rtol=1e-4, atol=1e-5)


def test_every_autoencoder_of_diffusers_is_adapted_or_refused_by_name(tmp_path: Path) -> None:
    """No class is left out, and a folder that holds a refused one says its name and the reason."""
    exported = {
        name
        for name, value in vars(diffusers.models.autoencoders).items()
        if isinstance(value, type) and issubclass(value, ModelMixin)
    }
    assert exported | {"PaellaVQModel"} == {*ADAPTERS, *REFUSED_AUTOENCODERS}
    assert not ADAPTERS.keys() & REFUSED_AUTOENCODERS.keys()
    assert {reference.autoencoder for reference in REFERENCES.values()} == ADAPTERS.keys()
    for name, reason in REFUSED_AUTOENCODERS.items():
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(GeneratorError) as raised:
            load_generator_folder(tmp_path)
        assert f"holds a {name}, which is not supported: {reason}" in str(raised.value)


def variant(name: str, **options: Any) -> Any:
    """Build the tiny autoencoder of a reference with other options."""
    network = build(name)
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return type(network)(**{**config, **options})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vq", {"lookup_from_codebook": True}, "aMUSEd"),
        ("kl-4", {"in_channels": 4}, "AutoencoderKL encodes 4 channels; RGB has 3"),
        ("qwen", {"input_channels": 4}, "AutoencoderKLQwenImage encodes 4 channels"),
        ("wan-2.2", {"in_channels": 4}, "AutoencoderKLWan encodes 1 channels"),
        ("wan-2.1", {"z_dim": 4}, "4 latent channels, but 16 latents_mean"),
        ("kl-16", {"latents_mean": [0.0], "latents_std": [1.0]}, "16 latent channels, but 1"),
        ("flux2", {"patch_size": (1, 1)}, r"patches of \(1, 1\)"),
    ],
)
def test_what_a_pipeline_would_misread_is_refused(
    name: str, options: dict[str, Any], said: str
) -> None:
    """Tokens, further colour channels and other counts of means end in an error that says so."""
    with pytest.raises(SettingsError, match=said):
        latent_space(variant(name, **options))


def test_an_unknown_class_is_refused_by_name() -> None:
    """An autoencoder of the user's own has no adapter."""
    own = type("OwnAutoencoder", (), {})()
    with pytest.raises(SettingsError, match="OwnAutoencoder is not supported: known are Autoenc"):
        latent_space(own)


def test_a_mean_without_a_deviation_is_ignored_as_pipelines_do() -> None:
    """SDXL's pipelines normalise per channel only where both are given."""
    both = variant("kl-4-mean", latents_std=None)
    assert isinstance(both, AutoencoderKL)
    with torch.inference_mode():
        expected = both.encode(VIEWS).latent_dist.mode() * 0.5
        torch.testing.assert_close(latent_space(both).encode(VIEWS), expected)
