"""`unlatent bundle --smoke`: a recipe goes through every stage on images that it draws itself."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from detection.bundle import load_bundle
from detection.detector import Detector
from detection.errors import SettingsError
from training.bundles.recipe import RECIPES
from training.bundles.smoke import EACH, FAMILIES, SIDE, SOURCES, draw_images, smoke_recipe
from training.data.samples import read_pixels
from training.fit.loop import LoopConfig
from worker.cli.training import commands

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def run(folder: Path, *arguments: str) -> Result:
    """Call `unlatent bundle` with its results below a folder."""
    own = ["--run", str(folder / "run"), "--out", str(folder / "bundle")]
    return CliRunner().invoke(commands, ["bundle", *own, *arguments])


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("recipe", "branches"),
    [
        ("small", {"backbone"}),
        ("lare-aligned", {"aligned", "lare"}),
        ("other-generators", {"aligned", "lare"}),
    ],
)
def test_a_smoke_run_writes_a_bundle_that_scores(
    tmp_path: Path, recipe: str, branches: set[str]
) -> None:
    """Without data, a bundle of the recipe's branches comes out, with a card and its folds."""
    done = run(tmp_path, "--smoke", "--recipe", recipe)
    assert done.exit_code == 0, done.output
    made = load_bundle(tmp_path / "bundle")
    detector = Detector(made)
    detector.self_check()
    assert made.manifest.name == f"{recipe}-smoke"
    assert made.manifest.fusion.weights.keys() == branches
    assert len(made.manifest.metrics["unseen"]) == len(FAMILIES)
    card = made.path("card.md").read_text(encoding="utf-8")
    assert card.startswith(f"# The bundle `{recipe}-")
    assert ("-adversarial, own-pixels-16-16." in card) == (recipe == "other-generators")
    if recipe == "small":  # its head is fitted, not only begun
        entries = draw_images(tmp_path / "run" / "images")
        scores = detector.score([read_pixels(entry)[0] for entry in entries])
        generated = [entry.generated for entry in entries]
        assert roc_auc_score(generated, [score.branches["backbone"] for score in scores]) > 0.9
    # A run of the real recipe does not take the tiny stages for its own.
    other = run(tmp_path, "--recipe", recipe, "--data", str(tmp_path / "run" / "images"))
    assert isinstance(other.exception, SettingsError)
    assert f"holds a run of the recipe {recipe}-smoke" in str(other.exception)


def test_the_device_that_is_named_trains_the_first_network(tmp_path: Path) -> None:
    """On torch's device without memory, where nothing can be computed, no training ends."""
    done = run(tmp_path, "--smoke", "--recipe", "lare-aligned", "--device", "meta")
    assert isinstance(done.exception, RuntimeError)
    assert "meta" in str(done.exception)
    assert (tmp_path / "run" / "autoencoder").is_dir()
    assert not (tmp_path / "run" / "autoencoder.safetensors").exists()


@pytest.mark.parametrize("arguments", [[], ["--smoke", "--data", "."]])
def test_images_are_named_or_drawn(tmp_path: Path, arguments: list[str]) -> None:
    """Neither --data nor --smoke, or both, is wrong usage, and nothing is written."""
    done = run(tmp_path, *arguments)
    assert done.exit_code == 2
    assert "either --data names the images" in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_the_images_drawn_are_of_two_labels_and_differ(tmp_path: Path) -> None:
    """Every source and family has its number of files of one size, of which no two are equal."""
    entries = draw_images(tmp_path)
    sets = [entry.set for entry in entries]
    assert {name: sets.count(name) for name in sets} == dict.fromkeys([*SOURCES, *FAMILIES], EACH)
    assert {entry.set for entry in entries if entry.generated} == FAMILIES.keys()
    pixels = [np.asarray(Image.open(entry.path)) for entry in entries]
    assert {one.shape for one in pixels} == {(SIDE, SIDE, 3)}
    assert len({one.tobytes() for one in pixels}) == len(entries)


@pytest.mark.parametrize("name", RECIPES)
def test_every_loop_of_a_smoke_recipe_is_short(name: str) -> None:
    """No training of a recipe keeps its length, and what branches it has stays."""
    tiny = smoke_recipe(RECIPES[name])
    loops = [getattr(tiny, field.name) for field in fields(tiny)]
    assert {loop.steps for loop in loops if isinstance(loop, LoopConfig)} == {tiny.fold_steps}
    assert tiny.fold_steps < 10
    assert (tiny.backbone is None) == (RECIPES[name].backbone is None)
    kinds = [[spec.upsampling for spec in one.autoencoders] for one in (tiny, RECIPES[name])]
    assert kinds[0] == kinds[1]
    assert len({spec.name for spec in tiny.autoencoders}) == len(kinds[0])
