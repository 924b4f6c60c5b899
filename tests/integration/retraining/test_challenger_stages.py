"""From a sealed data set to a registered challenger, over real Postgres and object storage."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import text

from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.confirmed_decisions import Picture, confirm
from tests.support.processes.challenge_process import POLICY, build_run_context, tiny_recipe
from tests.support.waiting import eventually
from training.bundles.challenger import ChallengerRecipe
from training.data.shaders import renderings
from training.evaluation.promotion_gate import GateLimits
from worker.models.registry import GateNotPassed, ModelsRegistry
from worker.retraining.runs import Ending, Runs
from worker.retraining.scheduled_promotion import promote_when_due
from worker.retraining.stage_runner import run_stages
from worker.retraining.stages import stages_of
from worker.retraining.wiring import load_alignment_models, preset_place
from worker.settings import child_environment

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.retraining.bucket_state import RunContext
    from worker.retraining.runs import Run
    from worker.settings import Settings
    from worker.storage.s3 import S3Storage

PHOTOGRAPHS, FAKES = 84, 24
#: Sixteen images say little: these limits ask for recall beyond noise and for nothing else.
LENIENT = GateLimits(
    min_class_images=1,
    min_source_images=1000,
    allowed_loss=1.0,
    allowed_calibration_loss=1.0,
    bootstraps=50,
)


@pytest.fixture
def context(engine: Engine, storage: S3Storage, settings: Settings, tmp_path: Path) -> RunContext:
    """Tiny networks and short training over this test's services."""
    return build_run_context(engine, storage, settings.s3.buckets[0], tmp_path)


@pytest.fixture
def images(engine: Engine, owner: Engine, storage: S3Storage, settings: Settings) -> list[UUID]:
    """Trusted photographs and generated images that the random audit drew."""
    reals = [
        Picture(pixels=pixels, label=None, source="camera")
        for _, pixels in renderings(PHOTOGRAPHS, side=64)
    ]
    rng = np.random.default_rng(0)
    fakes = [
        Picture(
            pixels=rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
            label="generated",
            audit_share=1.0,
        )
        for _ in range(FAKES)
    ]
    return confirm(engine, owner, storage, settings.s3.buckets[0], [*reals, *fakes])


def lenient(context: RunContext) -> RunContext:
    """Train for longer, and hold the challenger to `LENIENT`."""
    recipe = tiny_recipe(steps=40)
    # Draws follow from an image's id, which no two runs share: with one draw an image now and then
    # what a head of few images learns holds on no others.
    recipe = replace(recipe, sampling=replace(recipe.sampling, view_copies=8))
    return replace(context, plan=replace(context.plan, gate_limits=LENIENT, recipe=recipe))


def loop(context: RunContext, slot: str = "one") -> Ending | None:
    """Run every stage in a slot."""
    runs = Runs(context.engine, holder="trainer", lease=timedelta(minutes=5))
    run = runs.begin(slot, trigger="test")
    assert run is not None
    return run_stages(run, stages_of(context), runs)


def run_row(engine: Engine) -> Any:
    """The only run."""
    with engine.connect() as connection:
        return connection.execute(text("SELECT * FROM app.training_runs")).one()


@pytest.mark.timeout(600)
def test_a_refused_challenger_is_registered_and_traceable(
    engine: Engine, owner: Engine, context: RunContext, images: list[UUID]
) -> None:
    """The gate refuses noise: the champion stays, and the challenger can be forced and traced."""
    assert loop(context) is Ending.REFUSED

    registry = ModelsRegistry(engine)
    run = run_row(engine)
    challenger = run.stages["register"]["model_version"]
    champion = registry.champion()
    assert champion is not None
    assert champion.digest == run.stages["train"]["champion"] != challenger
    assert run.stages["gate"]["passed"] is False
    assert run.reason == "; ".join(run.stages["gate"]["reasons"])
    assert registry.active().shadow is None
    assert context.bundle_access.of(challenger).model_version == challenger
    report = context.storage.fetch(
        context.bucket, f"reports/run-{run.id}/report.md", max_bytes=2**20
    )
    assert b"The gate refused it" in report
    with pytest.raises(GateNotPassed):
        registry.promote(challenger, actor="ada", reason="hope")
    registry.promote(challenger, actor="ada", reason="the family is flooding us", forced=True)

    with owner.begin() as connection:
        connection.execute(
            text("UPDATE app.verdicts SET model_version = :new WHERE image_id = :image"),
            {"new": challenger, "image": images[0]},
        )
        learnt = connection.execute(
            text("""
                SELECT i.id, m.uri, r.id AS run
                FROM app.verdicts v
                JOIN app.model_versions m ON m.digest = v.model_version
                JOIN app.dataset_snapshots s ON s.digest = m.training_snapshot
                JOIN app.training_runs r ON r.snapshot_id = s.id
                JOIN app.snapshot_items n ON n.snapshot_id = s.id
                JOIN app.images i ON i.id = n.image_id
                WHERE v.image_id = :image
            """),
            {"image": images[0]},
        ).all()
    assert {row.id for row in learnt} == set(images)
    assert {(row.uri, row.run) for row in learnt} == {(run.stages["register"]["uri"], run.id)}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_challenger_that_passes_goes_through_shadow(
    engine: Engine, context: RunContext, images: list[UUID], settings: Settings
) -> None:
    """One that learnt what the champion does not know serves in shadow, then becomes champion."""
    assert images
    # Noise against renderings is learnt at once, and the random champion knows neither.
    assert loop(lenient(context)) is Ending.FINISHED

    registry = ModelsRegistry(engine)
    shadow = registry.active().shadow
    assert shadow is not None
    assert shadow.digest == run_row(engine).stages["register"]["model_version"]
    training = settings.training.model_copy(update={"promote_after_s": 0.001})
    assert promote_when_due(engine, registry, training) is None  # it has judged no image yet
    waived = training.model_copy(update={"promote_min_images": 0})
    assert promote_when_due(engine, registry, waived) == shadow.digest
    champion = registry.champion()
    assert champion is not None
    assert champion.digest == shadow.digest


@pytest.mark.timeout(600)
def test_a_champion_with_a_backbone_is_taught_through_every_stage(
    engine: Engine,
    storage: S3Storage,
    settings: Settings,
    images: list[UUID],
    tmp_path: Path,
) -> None:
    """One like the shipped: its challenger is registered, with another head on the same network."""
    assert images
    folder = tmp_path / "champion"
    champion = build_tiny_bundle(folder, branches=("backbone",), generator=True)
    context = build_run_context(engine, storage, settings.s3.buckets[0], tmp_path)
    models = load_alignment_models(champion, "cpu", preset_place(settings))
    context = replace(context, load_models=lambda: models)
    assert loop(lenient(context)) in {Ending.FINISHED, Ending.REFUSED}
    register = run_row(engine).stages["register"]
    challenger = context.bundle_access.of(register["model_version"])
    before, after = (load_file(one.path("backbone.safetensors")) for one in (champion, challenger))
    stem = "network.conv_stem.weight"
    assert torch.equal(after[stem], before[stem].half())
    assert not torch.equal(after["head.weight"], before["head.weight"].half())


@pytest.mark.full
def test_too_few_photographs_to_calibrate_end_the_run_before_training(
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    settings: Settings,
    context: RunContext,
) -> None:
    """Without generated images on the calibration side nothing is trained, and it is said."""
    pictures = [
        Picture(pixels=pixels, label=None, source="camera") for _, pixels in renderings(12, side=64)
    ]
    confirm(engine, owner, storage, settings.s3.buckets[0], pictures)

    assert loop(context) is Ending.REFUSED

    row = run_row(engine)
    assert "0 generated images" in row.reason
    assert sorted(row.stages) == ["align", "audit", "collect"]
    assert len(ModelsRegistry(engine).versions()) == 1  # the champion


@pytest.mark.full
@pytest.mark.failure
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stage",
    ["collect", "align", "audit", "train", "calibrate", "evaluate", "gate", "register"],
)
def test_a_killed_stage_is_done_again(
    engine: Engine,
    settings: Settings,
    context: RunContext,
    images: list[UUID],
    tmp_path: Path,
    stage: str,
) -> None:
    """After kill -9 within training or behind a stage's work the run ends as if uninterrupted."""
    assert images
    checkpoint = tmp_path / "work" / "run-1" / "aligned" / "checkpoint.safetensors"
    mark = checkpoint if stage == "train" else tmp_path / f"{stage}.mark"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.processes.challenge_process", str(tmp_path), stage],
        env=child_environment(settings),
    )
    try:
        eventually(mark.exists, timeout_s=600, what=f"the middle of {stage}")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    registry = ModelsRegistry(engine)
    for left in registry.versions():
        assert context.bundle_access.of(left.digest).model_version == left.digest

    runs = Runs(engine, holder="survivor", lease=timedelta(minutes=5))
    taken: list[Run] = []

    def took() -> bool:
        run = runs.resume()
        if run is not None:
            taken.append(run)
        return bool(taken)

    eventually(took)
    assert stage not in taken[0].stages
    assert run_stages(taken[0], stages_of(context), runs) is Ending.REFUSED

    row = run_row(engine)
    assert row.deaths == 1
    assert {model.digest for model in registry.versions()} == {
        row.stages["train"]["champion"],
        row.stages["register"]["model_version"],
    }


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_poisoned_batch_never_reaches_the_champion(
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    settings: Settings,
    context: RunContext,
    images: list[UUID],
) -> None:
    """One account confirms 500 generated images as real: few get in, and the gate refuses."""
    rng = np.random.default_rng(13)
    poison = [
        Picture(
            pixels=rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
            label="real",
            uploader="mallory",
            moderator="mallory",
        )
        for _ in range(500)
    ]
    poisoned = set(confirm(engine, owner, storage, settings.s3.buckets[0], poison))

    assert loop(lenient(context)) is Ending.REFUSED

    row = run_row(engine)
    with engine.connect() as connection:
        taken = set(connection.scalars(text("SELECT image_id FROM app.snapshot_items")))
    assert taken >= set(images)
    assert len(taken & poisoned) <= POLICY.max_per_uploader
    assert "not better beyond noise" in row.reason
    champion = ModelsRegistry(engine).champion()
    assert champion is not None
    assert champion.digest == row.stages["train"]["champion"]


def test_the_recipe_is_of_the_length_that_is_asked_for() -> None:
    """A shorter recipe differs in its steps only."""
    recipe = ChallengerRecipe()
    short = recipe.at_most(7)

    assert short.loop.steps == 7
    assert replace(short, loop=recipe.loop) == recipe
