"""The bundle's recipe on a handful of tiny images: autoencoders of its own, shaders, resumption."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from detection.bundle import load_bundle
from detection.detector import Detector
from detection.errors import SettingsError
from detection.generators.generator import noise_bank
from detection.networks.branch_configs import AlignedConfig, EgreConfig, LareConfig
from tests.support.bundles.tiny_bundle import BACKBONE
from tests.support.images.labelled_folder import write_folder
from training.bundles.backbone_build import build_backbone_bundle
from training.bundles.build import build_bundle
from training.bundles.form_cache import FormCache
from training.bundles.head_branch import HeadRecipe
from training.bundles.recipe import RECIPES, BundleRecipe, write_recipe
from training.bundles.training_run import branches, generator
from training.bundles.training_run.run import BundleTrainingRun
from training.data.augmentation import AugmentationConfig
from training.data.folds import make_folds
from training.data.manifest import listing_digest, load_manifest
from training.data.samples import load_samples
from training.data.shaders import shader_samples
from training.fit import adversarial_task
from training.fit.aligned_task import AlignedBatch, AlignedTask
from training.fit.generator_tasks import (
    AutoencoderSpec,
    AutoencoderTask,
    Shuffled,
    Upsampling,
    build_autoencoder,
)
from training.fit.loop import LoopConfig
from training.fit.pixel_task import PixelSpec
from worker.cli.training import bundle, commands

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from detection.bundle import Bundle

STEP = LoopConfig(steps=1, loader_workers=0)
KINDS: tuple[Upsampling, ...] = get_args(Upsampling)
TINY = BundleRecipe(
    name="tiny",
    augmentation=AugmentationConfig(crop=32, margin=8),
    lare=LareConfig(side=64, ensemble=2),
    egre=EgreConfig(heads=1),
    aligned=AlignedConfig(widths=(16, 16), depths=(1, 1), max_tiles=1),
    batch=AlignedBatch(pairs=2, unpaired=2),
    autoencoder_loop=STEP,
    predictor_loop=STEP,
    aligned_loop=STEP,
    egre_loop=STEP,
    view_copies=1,
    partial_noise_images=2,
    sampled_images=1,
    autoencoders=tuple(
        AutoencoderSpec(widths=(16, 16), latent_channels=2 + at, upsampling=kind)
        for at, kind in enumerate(KINDS)
    ),
    shaders=2,
)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train autoencoders on two crops a step."""
    task = partial(AutoencoderTask, crop=32, batch_size=2)
    for module in (generator, adversarial_task):
        monkeypatch.setattr(module, "AutoencoderTask", task)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(16, 24), (16, 16, 24)])
def test_an_autoencoder_of_our_own_keeps_the_shape(kind: Upsampling, widths: tuple[int]) -> None:
    """Latents are (B, C, H/f, W/f), and every way of doubling comes back to the image's sides."""
    spec = AutoencoderSpec(widths=widths, latent_channels=3, upsampling=kind)
    network = build_autoencoder(spec).eval()
    images, factor = noise_bank((2, 3, 32, 48), seed=0), 2 ** (len(widths) - 1)
    with torch.inference_mode():
        latents = network.encode(images).latent_dist.mode()
        assert latents.shape == (2, 3, 32 // factor, 48 // factor)
        assert network.decode(latents).sample.shape == images.shape
    kinds = {
        type(up).__name__ for block in network.decoder.up_blocks for up in block.upsamplers or ()
    }
    assert kinds == {
        {"nearest": "Upsample2D", "transposed": "ConvTranspose2d"}.get(kind, "Shuffled")
    }


def test_shuffling_lays_four_channels_out_as_a_square() -> None:
    """Output pixel (2y + i, 2x + j) of a channel is the convolution's channel 4c + 2i + j."""
    module, features = Shuffled(3), noise_bank((1, 3, 4, 5), seed=1)
    with torch.inference_mode():
        raw, found = module.conv(features), module(features)
    for c, i, j in np.ndindex(3, 2, 2):
        torch.testing.assert_close(found[:, c, i::2, j::2], raw[:, 4 * c + 2 * i + j])


def test_every_real_and_every_shader_is_paired_by_every_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run trains nothing again that was finished, and autoencoders differ in their pairs.

    The second training is killed; the next run begins with it.
    """
    recipe = replace(TINY, autoencoders=TINY.autoencoders[1:])
    entries = load_manifest(write_folder(tmp_path / "data", each=2))
    trained: list[str] = []
    fit: Callable[..., dict[str, Tensor]] = generator.fit

    def watched(*given: Any, **named: Any) -> dict[str, Tensor]:
        trained.append(given[3].name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(*given, **named)

    for module in (generator, branches):
        monkeypatch.setattr(module, "fit", watched)
    with pytest.raises(KeyboardInterrupt):
        BundleTrainingRun(entries, tmp_path / "run", recipe).aligned("final", entries)
    BundleTrainingRun(entries, tmp_path / "run", recipe).aligned("final", entries)
    BundleTrainingRun(entries, tmp_path / "run", recipe).aligned("final", entries)
    names = [spec.name for spec in recipe.autoencoders]
    assert trained == [names[0], names[1], names[1], "aligned"]
    folders = {folder.name: folder for folder in (tmp_path / "run" / "pairs").iterdir()}
    assert set(folders) == set(names)
    made = [{file.name: np.load(file) for file in folders[name].iterdir()} for name in names]
    reals = [entry for entry in entries if not entry.generated]
    shaders = [one.pixels for one in shader_samples(recipe.shaders)]
    for files in made:
        for pixels in shaders:
            digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
            assert f"{digest}.npy" in files
        assert len(files) == len(reals) + recipe.shaders
        assert files.keys() == made[0].keys()
    assert not all(np.array_equal(image, made[1][name]) for name, image in made[0].items())
    assert not (tmp_path / "run" / "generator").exists()


def test_shaders_enter_in_pairs_alone(tmp_path: Path) -> None:
    """Without pairs no crop comes from a shader; with pairs both sides of one do."""
    samples = load_samples(load_manifest(write_folder(tmp_path, each=2)))
    rendered = shader_samples(1)
    rendered[0].pixels[:] = 255
    rendered[0].reconstructions["own"] = np.zeros_like(rendered[0].pixels)
    plain = AugmentationConfig(
        crop=32,
        margin=0,
        resize_p=0,
        blur_p=0,
        noise_p=0,
        colour_p=0,
        jpeg_p=0,
        webp_p=0,
        cutout_p=0,
    )
    apart = AlignedTask(samples, plain, AlignedBatch(pairs=0, unpaired=8), rendered)
    crops = torch.cat([apart.batch(0, step)["crops"] for step in range(8)]).float()
    assert crops.mean((1, 2, 3)).max() < 250
    together = AlignedTask(samples, plain, AlignedBatch(pairs=2, unpaired=0), rendered)
    batch = together.batch(0, 0)
    means = batch["crops"].float().mean((1, 2, 3))
    assert means[batch["labels"] == 0].min() > 250
    assert means[batch["labels"] == 1].max() < 5


def test_the_named_recipes_differ_in_one_thing_each() -> None:
    """`small` is what the shipped bundle names, another branch; the others add pairs."""
    offered = get_type_hints(bundle, include_extras=True)["recipe"].__origin__
    assert tuple(RECIPES) == ("small", "lare-aligned", "broad", "other-generators")
    assert tuple(RECIPES) == get_args(offered)
    small, plain, broad = RECIPES["small"], RECIPES["lare-aligned"], RECIPES["broad"]
    assert load_bundle("small").manifest.provenance.recipe.endswith(f"BundleRecipe {small.name}")
    assert plain == BundleRecipe()
    assert (plain.autoencoders, plain.shaders) == ((), 0)
    added = {"name": "broad", "autoencoders": broad.autoencoders, "shaders": broad.shaders}
    assert replace(plain, **added) == broad
    assert plain.backbone is None
    assert replace(plain, name="small", backbone=small.backbone) == small
    assert len({spec.upsampling for spec in broad.autoencoders}) == len(KINDS)
    assert len({spec.widths for spec in (*broad.autoencoders, AutoencoderSpec())}) > 2
    assert min(min(spec.widths) for spec in broad.autoencoders) >= 16
    other = RECIPES["other-generators"]
    pairs = {"autoencoders": other.autoencoders, "pixels": other.pixels}
    assert replace(plain, name=other.name, **pairs) == other
    assert [spec.adversarial for spec in other.autoencoders] == [False, True]


def test_pairs_are_made_by_generators_that_are_no_latent_diffusion(tmp_path: Path) -> None:
    """By one trained against a critic, which is not kept, and by one on pixels, each trained once.

    The third is the embedded generator's own autoencoder, for which nothing more is trained.
    """
    tiny, pixels = AutoencoderSpec(widths=(16, 16), adversarial=True), PixelSpec(widths=(16, 16))
    recipe = replace(TINY, autoencoders=(AutoencoderSpec(), tiny), pixels=pixels)
    entries = load_manifest(write_folder(tmp_path / "data", each=2))
    run = BundleTrainingRun(entries, tmp_path / "run", recipe)
    run.generator()
    samples = run.samples(entry for entry in entries if not entry.generated)
    run.pairs(samples)
    names = {"own-nearest-16-32-64-96-4", tiny.name, pixels.name}
    for sample in samples:
        assert sample.reconstructions.keys() == names
        assert len({made.tobytes() for made in sample.reconstructions.values()}) == len(names)
    trained = {file.name: file.stat().st_mtime_ns for file in (run.run_dir / "own").glob("*.s*")}
    assert set(trained) == {f"{tiny.name}.safetensors", f"{pixels.name}.safetensors"}
    weights = load_file(run.run_dir / "own" / f"{tiny.name}.safetensors")
    assert weights.keys() == build_autoencoder(tiny).state_dict().keys()
    again = BundleTrainingRun(entries, tmp_path / "run", recipe)
    others = again.samples(entry for entry in entries if not entry.generated)
    again.pairs(others)
    for one, other in zip(samples, others, strict=True):
        np.testing.assert_equal(one.reconstructions, other.reconstructions)
    assert trained == {
        file.name: file.stat().st_mtime_ns for file in (run.run_dir / "own").glob("*.s*")
    }


def test_a_run_of_another_recipe_is_not_continued(tmp_path: Path) -> None:
    """Its finished stages would be taken for this recipe's; the same recipe goes on."""
    file = tmp_path / "recipe.json"
    write_recipe(RECIPES["lare-aligned"], file)
    write_recipe(replace(RECIPES["lare-aligned"], calibration="isotonic"), file)
    assert json.loads(file.read_text())["calibration"] == "isotonic"
    with pytest.raises(SettingsError, match=r"recipe lare-aligned, not broad: name another folder"):
        write_recipe(RECIPES["broad"], file)


def test_a_run_on_other_images_is_not_continued(tmp_path: Path) -> None:
    """Nor on the same ones in another order, by which a run stores them."""
    entries = load_manifest(write_folder(tmp_path / "data", each=2))
    read, file = {"images": listing_digest(entries)}, tmp_path / "recipe.json"
    write_recipe(RECIPES["small"], file)
    write_recipe(RECIPES["small"], file, read)
    write_recipe(RECIPES["small"], file, {"images": listing_digest(list(entries))})
    for others in (entries[1:], entries[::-1]):
        with pytest.raises(SettingsError, match="a run on other images: name another folder"):
            write_recipe(RECIPES["small"], file, {"images": listing_digest(others)})
    assert json.loads(file.read_text())["inputs"] == read


def test_a_run_with_other_folds_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold's finished stages stand under its name, whatever it leaves out now."""
    folder = write_folder(tmp_path / "data", each=2)
    folds = folder / "folds.tsv"

    def build(*options: str) -> BaseException | None:
        common = ["bundle", "--data", str(folder), "--run", str(tmp_path / "run")]
        asked = [*common, "--recipe", "lare-aligned", *options]
        return CliRunner().invoke(commands, asked).exception

    heard: list[int] = []

    def note(*_: object, folds: list[object], **__: object) -> Bundle:
        heard.append(len(folds))
        return load_bundle("small")

    monkeypatch.setattr("training.bundles.build.build_bundle", note)
    folds.write_text("fold\tfamilies\tsources\none\tbeta\tlake\n")
    assert build() is None
    assert build("--no-folds") is None
    assert heard == [1, 0]
    folds.write_text("fold\tfamilies\tsources\none\tbeta\tstreet\n")
    assert "a run on other folds: name another folder with --run" in str(build())
    folds.unlink()
    assert "a run on other folds" in str(build())
    assert heard == [1, 0]


def test_what_cannot_be_used_is_named_before_the_hours_go_by(tmp_path: Path) -> None:
    """One file that is no picture ends the command at once, with its name and nothing written."""
    folder = write_folder(tmp_path / "data", each=2)
    (folder / "lake-1.jpg").write_bytes(b"no picture")
    run = tmp_path / "run"
    done = CliRunner().invoke(commands, ["bundle", "--data", str(folder), "--run", str(run)])
    assert isinstance(done.exception, SettingsError)
    said = str(done.exception)
    assert "1 of the images listed cannot be used (lake-1.jpg: cannot be read" in said
    assert not run.exists()


def test_a_folder_that_no_bundle_may_replace_is_refused_before_images_are_read(
    tmp_path: Path,
) -> None:
    """Other files, and the run inside of the bundle's folder, end the command at once."""
    out = tmp_path / "out"
    asked = ["bundle", "--data", str(tmp_path / "no-images"), "--out", str(out), "--run"]
    done = CliRunner().invoke(commands, [*asked, str(out / "run")])
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception).endswith("lies where the bundle is written: name another --out")
    out.mkdir()
    (out / "photo.jpg").touch()
    done = CliRunner().invoke(commands, [*asked, str(tmp_path / "run")])
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception).endswith("photo.jpg, which is of no bundle: name another --out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "photo.jpg"]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_bundle_comes_out_and_a_second_run_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From labelled images to a bundle that passes its own check, through every stage."""
    # So many that the loosest operating point is supported by one source that is held back whole.
    folder = write_folder(tmp_path / "data", each=72, sets=("lake", "street", "alpha1", "beta"))
    entries, recipe = load_manifest(folder), replace(TINY, calibration_sources=0.5, steady=True)
    made = build_bundle(
        BundleTrainingRun(entries, tmp_path / "run", recipe),
        tmp_path / "bundle",
        data_licence="made by a test",
    )
    Detector(made).self_check()
    assert made.manifest.provenance.recipe == "training.recipe.BundleRecipe tiny"
    assert made.manifest.policy.steady
    # The lare branch learns from the images and from what the generator made, from no pair.
    seen = [item.entry for item in BundleTrainingRun(entries, tmp_path / "run", recipe).views()]
    own = sorted(entry.set for entry in seen if entry.family == "embedded")
    assert own == ["partial-noise", "partial-noise", "sampled"]
    assert sorted(str(entry.path) for entry in seen if entry.family != "embedded") == sorted(
        str(entry.path) for entry in entries
    )

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to train")

    for module in (generator, branches):
        monkeypatch.setattr(module, "fit", refuse)
    again = build_bundle(
        BundleTrainingRun(entries, tmp_path / "run", recipe),
        tmp_path / "again",
        data_licence="made by a test",
    )
    assert again.manifest.files["aligned.safetensors"] == made.manifest.files["aligned.safetensors"]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_backbone_bundle_comes_out_of_folds_and_a_second_run_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From labelled images to a calibrated bundle with its card, resumed from cached features."""
    folder = write_folder(
        tmp_path / "data", each=48, sets=("lake", "street", "hill", "alpha1", "beta", "gamma")
    )
    entries = load_manifest(folder)
    recipe = replace(TINY, backbone=BACKBONE, head=HeadRecipe(augmented=1))

    def build(name: str) -> Bundle:
        return build_backbone_bundle(
            BundleTrainingRun(entries, tmp_path / "run", recipe),
            tmp_path / name,
            data_licence="made by a test",
            folds=make_folds(entries),
        )

    made = build("bundle")
    Detector(made).self_check()
    manifest = made.manifest
    assert (manifest.aligned, manifest.egre) == (None, None)
    families = ("generated:alpha", "generated:beta", "generated:gamma")
    cached = np.concatenate(
        [
            load_file(part)["rows"].double().numpy()
            for form in ("clean", "web")
            for part in (tmp_path / "run" / "forms" / "backbone" / form).glob("*.safetensors")
        ]
    )
    scores = (cached - cached.mean(0)) / cached.std(0, ddof=1)
    limit = np.quantile(np.log((scores**2).mean(1)), 0.999)
    assert manifest.backbone is not None
    assert manifest.backbone.max_novelty == pytest.approx(limit, abs=1e-3)
    assert replace(manifest.backbone, max_novelty=None) == replace(
        BACKBONE, real=("real:photograph",), generated=families
    )
    assert manifest.fusion.weights.keys() == {"backbone"}
    assert manifest.operating_points[-1].reals == 3 * 48
    pooled = manifest.metrics["pooled"]["forms"]["web"]
    assert pooled["photographs_accused"]["total"] == 3 * 48
    assert len(manifest.metrics["unseen"]) == 3
    columns = 0
    for line in made.path("card.md").read_text(encoding="utf-8").splitlines():
        columns = (columns or line.count("|")) if line.startswith("|") else 0
        assert line.count("|") == columns or not line.startswith("|"), line

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to compute")

    for module in (generator, branches):
        monkeypatch.setattr(module, "fit", refuse)
    monkeypatch.setattr(FormCache, "_compute", refuse)
    again = build("again")
    name = "backbone.safetensors"
    assert again.manifest.files[name] == manifest.files[name]
    assert again.manifest.operating_points == manifest.operating_points


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "small", "--no-folds"], "are for the other recipes"),
        (["--recipe", "small", "--stay-positive"], "are for the other recipes"),
        (["--recipe", "small", "--taef2", "somewhere"], "are for the other recipes"),
        (["--recipe", "small", "--generator", "sd15"], "computes no error maps"),
        (["--recipe", "small", "--aligners", "taesd"], "computes no error maps"),
        (["--recipe", "broad", "--backbone-weights", "here"], "is not for --recipe broad"),
    ],
)
def test_options_that_a_recipe_ignores_are_refused(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    """What would be without effect is wrong usage, said before any image is read."""
    done = CliRunner().invoke(commands, ["bundle", "--data", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert told in " ".join(done.output.replace("│", " ").split())


def test_two_folds_calibrate_nothing(tmp_path: Path) -> None:
    """Thresholds of a fold rest on two others at least; the error says how many there are."""
    entries = load_manifest(write_folder(tmp_path / "data", sets=("lake", "street", "beta")))
    training_run = BundleTrainingRun(entries, tmp_path, replace(TINY, backbone=BACKBONE))
    with pytest.raises(SettingsError, match="1 folds can be made"):
        build_backbone_bundle(
            training_run, tmp_path / "bundle", data_licence="", folds=make_folds(entries)
        )
