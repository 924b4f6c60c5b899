"""Bundles trained on published generators, in their layout with tiny random weights."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from detection.bundle import load_bundle
from detection.detector import Detector
from detection.errors import SettingsError
from detection.generators.presets import PRESETS, PresetError, find_preset
from detection.networks.branch_configs import AlignedConfig, EgreConfig, LareConfig
from tests.support.generators.autoencoder_references import REFERENCES, build
from tests.support.generators.tiny_families import save_family
from tests.support.images.labelled_folder import write_folder
from training.bundles.preset_generator import PresetGenerator, PresetPlace, load_preset_generator
from training.bundles.recipe import RECIPES, BundleRecipe, write_recipe
from training.bundles.training_run import branches, generator
from training.bundles.training_run.run import BundleTrainingRun
from training.bundles.writer import write_bundle
from training.data.augmentation import AugmentationConfig
from training.data.manifest import load_manifest
from training.fit.aligned_task import AlignedBatch
from training.fit.loop import LoopConfig
from worker.cli import main
from worker.cli.training import commands

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle import Bundle

REVISION = "0123456789abcdef0123456789abcdef01234567"
STEP = LoopConfig(steps=1, loader_workers=0)
TINY = BundleRecipe(
    name="tiny",
    augmentation=AugmentationConfig(crop=32, margin=8),
    lare=LareConfig(side=64, ensemble=2),
    egre=EgreConfig(heads=1),
    aligned=AlignedConfig(widths=(16, 16), depths=(1, 1), max_tiles=1),
    batch=AlignedBatch(pairs=2, unpaired=2),
    aligned_loop=STEP,
    egre_loop=STEP,
    view_copies=1,
    partial_noise_images=2,
    sampled_images=1,
)


def place_of(folder: Path, *names: str) -> PresetPlace:
    """Return the place of presets under a folder, with revisions recorded for `names`."""
    folder.mkdir(exist_ok=True)
    pins = {name: {"repository": PRESETS[name].repository, "revision": REVISION} for name in names}
    (folder / "pins.json").write_text(json.dumps(pins))
    return PresetPlace(pins=folder / "pins.json", generators=folder)


def trained(folder: Path, name: str) -> tuple[Bundle, BundleTrainingRun]:
    """Train a draft on a preset, with pairs by a tiny autoencoder and by a 16-channel one."""
    place = place_of(folder / "generators", name)
    constants = save_family(folder / "generators" / name, name)
    save_file(constants, folder / "conditioning.safetensors")
    build("tiny").save_pretrained(folder / "generators" / "taesd")
    build("kl-16").save_pretrained(folder / "generators" / "sd3" / "vae")
    entries = load_manifest(write_folder(folder / "data", each=2))
    chosen = load_preset_generator(
        find_preset(name), place, conditioning=folder / "conditioning.safetensors"
    )
    aligners = [place.aligner(find_preset(one), device="cpu") for one in ("taesd", "sd3")]
    run = BundleTrainingRun(
        entries, folder / "run", TINY.on_preset(chosen), aligners, preset=chosen
    )
    networks = {"aligned": run.aligned("final", entries), "egre": run.lare("final", entries)}
    return write_bundle(folder / "bundle", run, networks), run


# Flux normalises bfloat16 with float32 weights, which torch calls slow.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("name", ["sd15", "flux1"])
def test_a_bundle_is_trained_on_a_preset_and_scored_with_it(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It names the preset and hashes its files, carries the conditioning, and `check` scores."""
    bundle, run = trained(tmp_path, name)
    reference = bundle.manifest.generator
    assert reference is not None
    assert (reference.preset, reference.revision) == (name, REVISION)
    assert not (bundle.folder / "generator").exists()
    folder = tmp_path / "generators" / name
    assert reference.files == {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.*")
    }
    stored = load_file(bundle.path("constants.safetensors"))
    given = load_file(tmp_path / "conditioning.safetensors")
    for key, value in given.items():
        torch.testing.assert_close(stored[f"conditioning.{key}"], value)
    assert stored["noise_bank"].shape == (2, 4, 16, 16)
    own = sorted(item.entry.set for item in run.views() if item.entry.family == "embedded")
    assert own == ["partial-noise", "partial-noise", "sampled"]
    assert all(item.error.shape == (4, 16, 16) for item in run.views())
    Detector(load_bundle(bundle.folder), generators=tmp_path / "generators").self_check()
    picture = str(tmp_path / "data" / "lake-0.jpg")
    options = ["check", "--bundle", str(bundle.folder), "--format", "jsonl", "--device", "cpu"]
    monkeypatch.setenv("UNLATENT_SCORING__GENERATORS", str(tmp_path / "generators"))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["unlatent", *options, picture])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["branches"].keys() == {"lare", "aligned"}
    monkeypatch.setattr(sys, "argv", ["unlatent", "models", "verify", str(bundle.folder)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code, capsys.readouterr().err
    assert capsys.readouterr().out.startswith(bundle.model_version)
    monkeypatch.setattr(sys, "argv", ["unlatent", *options, picture])
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code
    said = capsys.readouterr().err
    for word in (name, PRESETS[name].repository, REVISION, str(folder), "is missing"):
        assert word in said


def pair_file(folder: Path, pixels: NDArray[np.uint8]) -> Path:
    """Where the reconstruction of a photograph is stored: by its pixels."""
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return folder / f"{digest}.npy"


def test_pairs_are_made_by_each_named_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored pair is the preset's own reconstruction, and a second run trains nothing again."""
    _, run = trained(tmp_path, "sd15")
    for preset, name in (("taesd", "tiny"), ("sd3", "kl-16")):
        folder = tmp_path / "run" / "pairs" / preset
        assert len(list(folder.iterdir())) == 4
        pixels = np.array(Image.open(tmp_path / "data" / "lake-0.jpg"))
        view = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            network, reference = build(name), REFERENCES[name]
            restored = reference.decode(network, reference.encode(network, view)).clamp(-1, 1)
        expected = ((restored[0] + 1) * 127.5).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(np.load(pair_file(folder, pixels)), expected, atol=0.51)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to train")

    for module in (generator, branches):
        monkeypatch.setattr(module, "fit", refuse)
    again = BundleTrainingRun(run.entries, run.run_dir, run.recipe, run.aligners, preset=run.preset)
    again.aligned("final", run.entries)
    again.lare("final", run.entries)


def test_without_aligners_the_presets_own_autoencoder_makes_pairs(tmp_path: Path) -> None:
    """No generator of our own is trained beside a preset; on a CPU pairs are float32's."""
    place = place_of(tmp_path / "generators", "sd15")
    save_file(
        save_family(tmp_path / "generators" / "sd15", "sd15"), tmp_path / "constants.safetensors"
    )
    chosen = load_preset_generator(
        find_preset("sd15"), place, conditioning=tmp_path / "constants.safetensors"
    )
    entries = load_manifest(write_folder(tmp_path / "data", each=1))
    run = BundleTrainingRun(entries, tmp_path / "run", TINY.on_preset(chosen), preset=chosen)
    run.pairs(run.samples(entries))
    folder = tmp_path / "run" / "pairs" / "embedded"
    assert len(list(folder.iterdir())) == 2
    for name in ("lake-0.jpg", "street-0.jpg"):
        pixels = np.array(Image.open(tmp_path / "data" / name))
        view = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            restored = chosen.load().decode(chosen.load().encode(view))
        expected = ((restored[0] + 1) * 127.5).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(np.load(pair_file(folder, pixels)), expected, atol=0.51)
    assert not (tmp_path / "run" / "generator").exists()


def test_what_a_preset_lacks_is_named_before_the_hours_go_by(tmp_path: Path) -> None:
    """A missing folder or file, pin, predictor or conditioning ends the command at once."""
    data = str(write_folder(tmp_path / "data", each=2))
    place = place_of(tmp_path / "generators", "sd15")
    options = ["bundle", "--data", data, "--run", str(tmp_path / "run"), "--pins", str(place.pins)]
    options += ["--recipe", "lare-aligned", "--generators", str(place.generators)]
    conditioning = tmp_path / "constants.safetensors"

    def said(*more: str) -> str:
        given = ["--conditioning", str(conditioning)] if "--generator" in more else []
        done = CliRunner().invoke(commands, [*options, *given, *more])
        assert isinstance(done.exception, PresetError)
        assert not (tmp_path / "run").exists()
        return str(done.exception)

    assert "constants.safetensors cannot be read" in said("--generator", "sd15")
    save_file({"encoder_hidden_states": torch.zeros(1, 3, 8)}, conditioning)
    folder = tmp_path / "generators" / "sd15"
    named = ("sd15", PRESETS["sd15"].repository, REVISION, str(folder))
    missing = said("--generator", "sd15")
    assert all(word in missing for word in (*named, "no such folder"))
    save_family(folder, "sd15")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    missing = said("--generator", "sd15")
    assert all(word in missing for word in (*named, "scheduler_config.json is missing"))
    assert "taesd has no predictor" in said("--generator", "taesd")
    assert "presets pin sd21" in said("--generator", "sd21")
    missing = said("--aligners", "taesd")
    for word in (PRESETS["taesd"].repository, str(tmp_path / "generators" / "taesd")):
        assert word in missing
    assert "no preset named 'sd9'" in said("--aligners", "sd9")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--conditioning", "constants.safetensors"], "--conditioning"),
        (["--conditioning", "constants.safetensors", "--aligners", "taesd"], "--conditioning"),
        (["--variant", "fp16"], "--variant and --pins"),
        (["--pins", "pins.json"], "--variant and --pins"),
    ],
)
def test_options_on_presets_need_a_preset(tmp_path: Path, options: list[str], named: str) -> None:
    """Nothing that was asked for is silently left undone, by `bundle` and by `train`."""
    data = ["--data", str(write_folder(tmp_path / "data", each=2)), "--out", str(tmp_path / "out")]
    calls = [["bundle", *data, "--recipe", "lare-aligned", "--run", str(tmp_path / "run")]]
    if "--conditioning" not in options:
        calls.append(["train", *data])
    for call in calls:
        done = CliRunner().invoke(commands, [*call, *options], env={"COLUMNS": "200"})
        assert done.exit_code == 2
        assert f"{named} " in done.output
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_train_takes_its_makers_of_pairs_from_presets(tmp_path: Path) -> None:
    """`unlatent train --aligners` looks under --generators, else under that of the settings."""
    options = ["train", "--data", str(write_folder(tmp_path / "data", each=2))]
    options += ["--out", str(tmp_path / "out"), "--aligners", "taesd,sd3"]

    def said(*more: str, **settings: str) -> str:
        done = CliRunner().invoke(commands, [*options, *more], env=settings)
        assert isinstance(done.exception, PresetError)
        return str(done.exception)

    build("tiny").save_pretrained(tmp_path / "generators" / "taesd")
    missing = said("--generators", str(tmp_path / "generators"))
    assert PRESETS["sd3"].repository in missing
    assert str(tmp_path / "generators" / "sd3") in missing
    missing = said(UNLATENT_SCORING__GENERATORS=str(tmp_path / "others"))
    assert PRESETS["taesd"].repository in missing
    assert str(tmp_path / "others" / "taesd") in missing
    assert not (tmp_path / "out").exists()


def test_a_run_on_another_generator_is_not_continued(tmp_path: Path) -> None:
    """Its error maps and pairs would be taken for this generator's."""
    file, plain = tmp_path / "recipe.json", RECIPES["lare-aligned"]
    write_recipe(replace(plain, generator="sd15", aligners=("taesd",)), file)
    write_recipe(replace(plain, generator="sd15", aligners=("taesd",)), file)
    with pytest.raises(SettingsError, match="run of the generator sd15, not of our own"):
        write_recipe(plain, file)
    with pytest.raises(SettingsError, match="run of the aligners taesd, not taesd, sd3"):
        write_recipe(replace(plain, generator="sd15", aligners=("taesd", "sd3")), file)
    begun = json.loads(file.read_text())
    del begun["generator"], begun["aligners"]
    file.write_text(json.dumps(begun))
    write_recipe(plain, file)


def test_the_makers_of_pairs_of_a_run_are_of_one_version(tmp_path: Path) -> None:
    """By the recorded revision and the variant, without a record by the files in the folder."""
    folder = tmp_path / "generators" / "taesd"
    build("tiny").save_pretrained(folder)
    build("tiny").save_pretrained(folder, variant="fp16")

    def identity(place: PresetPlace) -> str:
        return place.aligner(find_preset("taesd"), device="cpu").identity

    unpinned = place_of(tmp_path / "generators")
    by_files = identity(unpinned)
    assert by_files.startswith("taesd@files ")
    assert identity(unpinned) == by_files
    pinned = place_of(tmp_path / "generators", "taesd")
    assert identity(pinned) == f"taesd@{REVISION[:12]}"
    assert identity(replace(pinned, variant="fp16")) == f"taesd@{REVISION[:12]} fp16"
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    changed = {name: value + 1 for name, value in tensors.items()}
    save_file(changed, weights, metadata={"format": "pt"})
    assert identity(place_of(tmp_path / "generators")) not in {by_files, "taesd"}


def test_a_run_is_of_one_revision_variant_and_conditioning(tmp_path: Path) -> None:
    """Each of them gives other error maps: a run folder takes none of them for another's.

    A record that is moved while training goes on changes nothing of it.
    """
    place = place_of(tmp_path, "sd15")
    constants = {"prompt": torch.ones(1, 4)}

    def made(place: PresetPlace, value: float = 1.0) -> PresetGenerator:
        conditioning = {"prompt": constants["prompt"] * value}
        return PresetGenerator(preset=find_preset("sd15"), place=place, conditioning=conditioning)

    first, other = made(place), made(place, value=2.0)
    variant = made(replace(place, variant="fp16"))
    pins = {"sd15": {"repository": PRESETS["sd15"].repository, "revision": "b" * 40}}
    place.pins.write_text(json.dumps(pins))
    moved = made(place)
    assert (
        first.identity == made(replace(place, pins=place_of(tmp_path / "x", "sd15").pins)).identity
    )
    assert len({one.identity for one in (first, other, variant, moved)}) == 4
    assert (first.revision, moved.revision) == (REVISION, "b" * 40)
