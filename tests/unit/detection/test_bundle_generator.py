"""Bundles that name a preset instead of carrying their generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from detection.bundle import BundleError, GeneratorReference, write_manifest
from detection.detector import Detector
from detection.generators.presets import PresetError
from tests.support.bundles.preset_bundle import REVISION, build_preset_bundle
from tests.support.bundles.tiny_bundle import build_tiny_bundle

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)


def test_a_named_preset_scores_as_the_same_generator_inside_would(tmp_path: Path) -> None:
    """Where the weights lie makes no difference, and the golden image stays golden."""
    inside = Detector(build_tiny_bundle(tmp_path / "inside")).score([IMAGE])[0]
    bundle = build_preset_bundle(tmp_path / "tiny", tmp_path / "generators")
    detector = Detector(bundle, generators=tmp_path / "generators")
    detector.self_check()
    assert dict(detector.score([IMAGE])[0].branches) == pytest.approx(dict(inside.branches))


def test_a_bundle_pins_the_weights_it_does_not_carry(tmp_path: Path) -> None:
    """Another revision's files, or a missing one, are refused by name."""
    bundle = build_preset_bundle(tmp_path / "tiny", tmp_path / "generators")
    config = tmp_path / "generators" / "sd15" / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(BundleError, match=r"unet/config\.json is not the file") as refusal:
        Detector(bundle, generators=tmp_path / "generators")
    for part in ("sd15", "stable-diffusion-v1-5/", REVISION, str(tmp_path / "generators" / "sd15")):
        assert part in str(refusal.value)
    config.unlink()
    with pytest.raises(BundleError, match=r"unet/config\.json is missing"):
        Detector(bundle, generators=tmp_path / "generators")


def test_a_preset_that_is_not_on_this_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the folder named nor in the hub's cache: preset, repository, revision, place."""
    bundle = build_preset_bundle(tmp_path / "tiny", tmp_path / "generators")
    with pytest.raises(PresetError, match=r"sd15 .*no such folder") as refusal:
        Detector(bundle, generators=tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere" / "sd15") in str(refusal.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PresetError, match=rf"sd15 \(stable-diffusion-v1-5/.*{REVISION}"):
        Detector(bundle)


def test_conditioning_comes_from_the_bundle(tmp_path: Path) -> None:
    """What the predictor is called with was computed beforehand; without it nothing is served."""
    bundle = build_preset_bundle(tmp_path / "tiny", tmp_path / "generators")
    constants = load_file(bundle.path("constants.safetensors"))
    del constants["conditioning.encoder_hidden_states"]
    save_file(constants, bundle.path("constants.safetensors"))
    changed = write_manifest(bundle.folder, bundle.manifest)
    with pytest.raises(BundleError, match="lack the conditioning encoder_hidden_states"):
        Detector(changed, generators=tmp_path / "generators")


def test_a_preset_without_a_predictor_cannot_score(tmp_path: Path) -> None:
    """An autoencoder alone has no latent reconstruction error."""
    bundle = build_preset_bundle(tmp_path / "tiny", tmp_path / "generators", preset="taesd")
    with pytest.raises(BundleError, match="taesd has no predictor"):
        Detector(bundle, generators=tmp_path / "generators")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"folder": "generator", "preset": "sd15", "revision": REVISION, "files": {"a": "b"}},
        {"preset": "sd15", "files": {"a": "b"}},
        {"preset": "sd15", "revision": REVISION},
    ],
)
def test_a_reference_that_pins_nothing_is_refused(fields: dict[str, object]) -> None:
    """One place, and for a preset its revision and its files' hashes."""
    with pytest.raises(ValueError, match=r"generator is either|named with its revision"):
        GeneratorReference.model_validate(fields)
