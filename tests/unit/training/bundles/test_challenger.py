"""A challenger from tiny networks: resumption, seeds, missing classes, a disk that is full."""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection.backbone import Backbone
from detection.detector import Detector
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.processes.challenge_process import tiny_recipe
from training.bundles.challenger import (
    ALIGNED,
    BACKBONE,
    EGRE,
    ChallengerOrigin,
    calibrate_challenger,
    fine_tune,
    lare_of,
    networks,
    require_calibration,
)
from training.bundles.challenger_data import (
    PARTIAL_NOISE,
    WINDOW,
    SamplingPlan,
    load_challenger_data,
)
from training.data.originals import Coding
from training.data.shaders import SHADERS, renderings
from training.data.shards import SampleFiles, extract, pack, unpack
from training.evaluation.calibration import CalibrationError, clopper_pearson
from training.fit.tensorboard import CURVES, HELD_BACK

if TYPE_CHECKING:
    from pathlib import Path

    from detection.bundle import Bundle
    from training.bundles.challenger import TrainedBranch

STEPS = 4


class Killed(Exception):
    """Stands in for the end of the process."""


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of random weights."""
    return build_tiny_bundle(tmp_path_factory.mktemp("champion"))


def files(count: int = 12, *, side: int = 64, label: str | None = None) -> list[SampleFiles]:
    """Renderings with a faint pattern as their reconstruction; every third is generated noise."""
    made = []
    rng = np.random.default_rng(1)
    for number, (name, pixels) in enumerate(renderings(count, side=side)):
        fake = (label or ("real" if number % 3 else "generated")) == "generated"
        image = rng.integers(0, 255, pixels.shape, dtype=np.uint8) if fake else pixels
        pair = {} if fake else {"imitator": Coding().encode(np.roll(pixels, 1, axis=0))}
        made.append(
            SampleFiles(
                key=name,
                group=f"group-{number}",
                source="feed" if fake else "camera",
                label="generated" if fake else "real",
                split="training",
                suffix="png",
                image=Coding().encode(image),
                reconstructions=pair,
            )
        )
    return made


def tuned(champion: Bundle, folder: Path, **options: object) -> dict[str, TrainedBranch]:
    """Teach for a few steps."""
    return fine_tune(files(), champion, tiny_recipe(STEPS), folder, **options)


def assert_equal(first: dict[str, TrainedBranch], second: dict[str, TrainedBranch]) -> None:
    """Both branches have the same weights to the bit, and the same losses on the way."""
    assert first.keys() == second.keys() == {ALIGNED, EGRE}
    for name, branch in first.items():
        assert branch.losses == second[name].losses
        for key, value in branch.weights.items():
            torch.testing.assert_close(second[name].weights[key], value, rtol=0, atol=0)


def test_a_killed_challenger_ends_as_an_uninterrupted_one(champion: Bundle, tmp_path: Path) -> None:
    """Killed in each branch, it resumes to the same weights and losses; a seed fixes them all.

    The losses on held-back groups are drawn as a curve.
    """

    def kill(name: str, step: int) -> None:
        if step == 3 and not (tmp_path / name).exists():
            (tmp_path / name).touch()
            raise Killed

    for _ in (ALIGNED, EGRE):
        with pytest.raises(Killed):
            tuned(champion, tmp_path / "killed", on_step=kill)
    resumed = tuned(champion, tmp_path / "killed", on_step=kill)

    whole = tuned(champion, tmp_path / "whole")
    assert_equal(whole, resumed)
    assert set(whole[ALIGNED].losses) == {0, 2, 4}
    run = tmp_path / "whole" / ALIGNED.removesuffix(".safetensors")
    reader = EventAccumulator(str(run / CURVES / HELD_BACK))
    reader.Reload()
    drawn = {event.step: event.value for event in reader.Scalars("loss")}
    assert drawn == pytest.approx(whole[ALIGNED].losses)


@pytest.mark.full
def test_without_generated_images_the_pairs_teach(champion: Bundle, tmp_path: Path) -> None:
    """No fake was confirmed: the aligned branch learns from pairs, the lare branch from its own."""
    data = fine_tune(files(label="real"), champion, tiny_recipe(2), tmp_path)

    assert data.keys() == {ALIGNED, EGRE}


def test_pairs_do_not_reach_the_lare_branch(champion: Bundle, tmp_path: Path) -> None:
    """Views are of photographs, confirmed fakes and partial-noise reconstructions only."""
    fine_tune(files(), champion, tiny_recipe(1), tmp_path)
    data = load_challenger_data(files(), tiny_recipe().sampling, tmp_path, lare=None)
    assert data.items == []

    plan = SamplingPlan(view_copies=1)
    wide = load_challenger_data(files(2, side=WINDOW + 64, label="real"), plan, tmp_path, lare=None)
    for sample in wide.samples:
        assert sample.pixels.shape == (WINDOW, WINDOW, 3)
        assert sample.reconstructions["imitator"].shape == (WINDOW, WINDOW, 3)
        moved = np.roll(sample.pixels, 1, axis=0)[1:]
        np.testing.assert_array_equal(sample.reconstructions["imitator"][1:], moved)


def test_renderings_teach_the_aligned_branch_alone(champion: Bundle, tmp_path: Path) -> None:
    """Their pairs are learnt from, no view or feature of them is made, of them alone nothing."""
    drawn = [replace(one, source=SHADERS) for one in files(3, label="real")]
    plan = SamplingPlan(view_copies=1, partial_noise_images=2)
    lare = lare_of(champion)
    data = load_challenger_data([*drawn, *files(6)], plan, tmp_path / "both", lare=lare)
    assert [sample.entry.set for sample in data.samples].count(SHADERS) == 3
    assert {item.entry.set for item in data.items} == {"camera", "feed", PARTIAL_NOISE}

    alone = load_challenger_data(drawn, plan, tmp_path / "alone", lare=lare)
    assert len(alone.samples) == 3
    assert alone.items == []

    backbone = networks(build_tiny_bundle(tmp_path / "headed", branches=("backbone",)))[BACKBONE]
    assert isinstance(backbone, Backbone)
    read = [*drawn, *files(6)]
    told = load_challenger_data(
        read, plan, tmp_path / "head", lare=None, backbone=backbone.eval(), aligned=False
    )
    assert told.head is not None
    assert len(told.head.features) == len(data.samples) - 3
    assert told.samples == []


@pytest.mark.full
def test_a_full_disk_keeps_what_was_whole(champion: Bundle, tmp_path: Path) -> None:
    """Where no file can grow, as on a full disk, the run ends; with room again it goes on."""
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Exception, match=r"os error 27|File too large"):
            tuned(champion, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert_equal(tuned(champion, tmp_path / "whole"), tuned(champion, run))


def test_the_challenger_is_a_bundle_of_its_own(champion: Bundle, tmp_path: Path) -> None:
    """It loads, checks itself, names what it came from, and states what its images support."""
    weights = {name: branch.weights for name, branch in tuned(champion, tmp_path / "run").items()}
    sampled = [
        replace(file, weight=2.0 if index < 30 else 1.0) for index, file in enumerate(files(60))
    ]
    entries = extract(unpack(pack(sampled)), tmp_path / "calibration")
    doubled = sum(entry.weight == 2 for entry in entries if not entry.generated)
    origin = ChallengerOrigin(
        snapshot_digest="d" * 64, families=["feed"], data_licence="none", facts={"run": 7}
    )
    made = calibrate_challenger(tmp_path / "challenger", champion, weights, entries, origin)

    Detector(made).self_check()
    assert made.model_version != champion.model_version
    provenance = made.manifest.provenance
    assert provenance.snapshot_digest == origin.snapshot_digest
    assert provenance.seen_families == ("feed",)
    assert champion.model_version in provenance.recipe
    assert made.manifest.metrics["challenger"]["run"] == 7
    point = made.manifest.operating_points[-1]
    assert (point.target, point.reals, point.supported) == (0.05, 40, True)
    worth = (40 + doubled) ** 2 / (40 + 3 * doubled)
    figures = made.manifest.metrics["challenger"]["calibration"]
    assert figures["effective_photographs"] == pytest.approx(worth, abs=0.05)
    assert point.high >= clopper_pearson(0, worth)[1] - 1e-9
    assert "40 photographs and 20 generated" in (made.folder / "card.md").read_text("utf-8")


def test_one_class_missing_is_said(champion: Bundle, tmp_path: Path) -> None:
    """A calibration side without generated images, or with too few photographs, is refused.

    Photographs that the champion let through are too few, however many they are.
    """
    reals = extract(files(40, label="real"), tmp_path / "reals")
    with pytest.raises(CalibrationError, match="40 photographs and 0 generated"):
        require_calibration(reals)
    few = extract(files(12), tmp_path / "few")
    with pytest.raises(CalibrationError, match="at least 28 photographs"):
        require_calibration(few)
    assert champion.manifest.operating_points
    enough = extract(files(60), tmp_path / "enough")
    require_calibration(enough)
    first = next(index for index, entry in enumerate(enough) if not entry.generated)
    enough[first] = replace(enough[first], weight=100.0)
    with pytest.raises(CalibrationError, match="worth 2 by how they were sampled"):
        require_calibration(enough)
    drawn = extract((replace(file, audited=True) for file in files(60)), tmp_path / "drawn")
    with pytest.raises(CalibrationError, match="40 of them were drawn by the random audit"):
        require_calibration(drawn)


@pytest.mark.full
def test_a_bundle_of_one_branch_teaches_that_branch(tmp_path: Path) -> None:
    """Without a generator there is no lare branch to teach."""
    bundle = build_tiny_bundle(tmp_path / "aligned", branches=("aligned",))

    assert fine_tune(files(), bundle, tiny_recipe(1), tmp_path / "run").keys() == {ALIGNED}


@pytest.mark.full
def test_another_seed_makes_another_challenger(champion: Bundle, tmp_path: Path) -> None:
    """The seed is what decides, not chance."""
    recipe = tiny_recipe(2)
    other = replace(recipe, loop=replace(recipe.loop, seed=1))
    first = fine_tune(files(), champion, recipe, tmp_path / "a")[ALIGNED].weights
    second = fine_tune(files(), champion, other, tmp_path / "b")[ALIGNED].weights

    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_a_backbone_is_taught_through_its_head_alone(tmp_path: Path) -> None:
    """The frozen weights stay to the bit, the head moves, and a second run computes no feature."""
    bundle = build_tiny_bundle(tmp_path / "champion", branches=("backbone",))
    first = fine_tune(files(24), bundle, tiny_recipe(1), tmp_path / "run")
    assert first.keys() == {BACKBONE}
    before = load_file(bundle.path(BACKBONE))
    moved = {
        name
        for name, value in first[BACKBONE].weights.items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"head.weight", "head.bias"}
    again = fine_tune(files(24), bundle, tiny_recipe(1), tmp_path / "run")
    torch.testing.assert_close(
        again[BACKBONE].weights["head.weight"], first[BACKBONE].weights["head.weight"]
    )


def test_without_both_classes_a_backbone_learns_nothing(tmp_path: Path) -> None:
    """Photographs alone tell a head nothing: the branch is left as it is."""
    bundle = build_tiny_bundle(tmp_path / "champion", branches=("backbone",))
    assert fine_tune(files(6, label="real"), bundle, tiny_recipe(1), tmp_path / "run") == {}
