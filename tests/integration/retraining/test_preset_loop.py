"""A bundle on a published generator through the whole loop: check, worker, trainer, reload."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from sqlalchemy import select
from typer.testing import CliRunner

from detection.bundle import load_bundle
from detection.generators.presets import PRESETS
from tests.support.confirmed_decisions import Picture, confirm
from tests.support.generators.autoencoder_references import build
from tests.support.generators.tiny_families import save_family
from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site
from tests.support.waiting import eventually
from training.bundles.smoke import SIDE
from training.data.shaders import renderings
from training.data.shards import load_dataset
from worker.cli import build_app
from worker.cli.context import Context
from worker.ledger.tables_training import TrainingRun
from worker.models.registry import ModelsRegistry
from worker.retraining.dataset_store import BucketStore
from worker.settings import Settings, child_environment

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.storage.s3 import S3Storage

REVISION = "0123456789abcdef0123456789abcdef01234567"
PHOTOGRAPHS, FAKES, STEPS = 84, 24, 30


def trained_bundle(folder: Path) -> Bundle:
    """Train a smoke bundle with sd15's layout; taesd and sd3 make its pairs."""
    generators = folder / "generators"
    save_file(save_family(generators / "sd15", "sd15"), folder / "conditioning.safetensors")
    build("tiny").save_pretrained(generators / "taesd")
    build("kl-16").save_pretrained(generators / "sd3" / "vae")
    pins = {"sd15": {"repository": PRESETS["sd15"].repository, "revision": REVISION}}
    (folder / "pins.json").write_text(json.dumps(pins))
    options = ["bundle", "--smoke", "--recipe", "lare-aligned", "--no-folds"]
    options += ["--generator", "sd15", "--aligners", "taesd,sd3"]
    for name, path in {
        "generators": generators,
        "conditioning": folder / "conditioning.safetensors",
        "pins": folder / "pins.json",
        "run": folder / "run",
        "out": folder / "bundle",
    }.items():
        options += [f"--{name}", str(path)]
    done = CliRunner().invoke(build_app(), options, obj=Context())
    assert done.exit_code == 0, (done.output, done.exception)
    return load_bundle(folder / "bundle")


def on_bundle(settings: Settings, bundle: Bundle, folder: Path) -> Settings:
    """Serve the bundle on the same services, and retrain it with pairs by two other presets."""
    scoring = {
        "bundle": str(bundle.folder),
        "generators": folder / "generators",
        "cache": folder / "cache",
        "reload_every_s": 0.2,
    }
    training = {
        "sources": ("web", "camera"),
        "trusted_sources": ("camera",),
        "bucket": settings.s3.buckets[0],
        "work_dir": folder / "work",
        "tick_s": 3.0,
        "min_new_images": FAKES,
        "aligners": ("taesd", "sd3"),
        "pins": folder / "pins.json",
        "evaluation_share": 0.2,
        "calibration_share": 0.5,
        "steps": STEPS,
        # Random networks move and blur more than an autoencoder may: the audit is not tested.
        "max_probe_auc": 1.0,
        "max_sharpness_auc": 1.0,
        "max_shift_px": 1e3,
        "max_tone_levels": 1e3,
        "max_mmd_squared": 2.0,
        "max_frechet": 1e6,
        "max_information": 1.0,
    }
    return settings.model_copy(
        update={
            "scoring": settings.scoring.model_copy(update=scoring),
            "training": settings.training.model_copy(update=training),
        }
    )


def with_run_dir(settings: Settings, name: str) -> Settings:
    """The same settings with a health folder of one process."""
    folder = settings.observability.run_dir.with_name(name)
    observability = settings.observability.model_copy(update={"run_dir": folder})
    return settings.model_copy(update={"observability": observability})


def confirm_images(
    settings: Settings, engine: Engine, owner: Engine, storage: S3Storage
) -> list[Picture]:
    """Have moderators vouch for renderings as photographs and for noise as generated."""
    rng = np.random.default_rng(0)
    reals = [
        Picture(pixels=pixels, label=None, source="camera")
        for _, pixels in renderings(PHOTOGRAPHS, side=SIDE)
    ]
    fakes = [
        Picture(
            pixels=rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8),
            label="generated",
            audit_share=1.0,
        )
        for _ in range(FAKES)
    ]
    confirm(engine, owner, storage, settings.s3.buckets[0], [*reals, *fakes])
    return [*reals, *fakes]


def runs(engine: Engine) -> list[Any]:
    """Every training run, oldest first."""
    with engine.connect() as connection:
        found = connection.execute(select(TrainingRun.__table__).order_by(TrainingRun.id))
        return list(found.all())


def encoded(value: int) -> bytes:
    """Return a PNG that no other value gives."""
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_bundle_on_a_preset_goes_from_training_to_a_reloaded_challenger(
    settings: Settings,
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`check` and the worker score with it; beat starts a run that reaches the gate.

    The challenger scores with the same files of the same preset, and the running worker takes it
    over without a restart.
    """
    bundle = trained_bundle(tmp_path)
    chosen = on_bundle(settings, bundle, tmp_path)
    for name, value in child_environment(chosen).items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "upload.png"
    file.write_bytes(encoded(1))
    options = ["check", "--bundle", str(bundle.folder), "--format", "jsonl", str(file)]
    checked = CliRunner().invoke(build_app(), options, obj=Context())
    row = json.loads(checked.stdout)
    assert row["branches"].keys() == {"lare", "aligned"}

    site = Site(chosen, engine)
    with WorkerProcess(with_run_dir(chosen, "w"), module="worker", arguments=["worker"]) as worker:
        worker.wait_until_ready()
        first = site.upload("first.png", encoded(1))
        site.wait_for(first)
        (verdict,) = site.verdicts(first)
        assert verdict.model_version == bundle.model_version
        assert verdict.score == pytest.approx(row["score"], abs=1e-4)

        confirm_images(chosen, engine, owner, storage)
        with (
            WorkerProcess(with_run_dir(chosen, "t"), module="worker", arguments=["trainer"]),
            WorkerProcess(with_run_dir(chosen, "b"), module="worker", arguments=["beat"]),
        ):
            eventually(
                lambda: any(run.state != "running" for run in runs(engine)),
                timeout_s=600,
                what="a training run that ended",
            )
        (run,) = runs(engine)
        assert run.trigger == "confirmed_images"
        # So few images on the evaluation side decide nothing: the gate says so.
        assert (run.state, run.stages.get("gate", {}).get("passed")) == ("refused", False), run
        assert run.stages["train"]["champion"] == bundle.model_version
        assert run.stages["train"]["branches"] == ["aligned.safetensors", "egre.safetensors"]
        pairs = BucketStore(storage, chosen.training.bucket, f"datasets/run-{run.id}/")
        assert load_dataset(pairs).aligners == ("taesd", "sd3")

        challenger = run.stages["register"]["model_version"]
        registry = ModelsRegistry(engine)
        registry.promote(challenger, actor="ada", reason="try", forced=True)
        eventually(
            lambda: any(one["digest"] == challenger for one in worker.events("model_changed")),
            timeout_s=120,
            what="the worker that took the challenger over",
        )
        second = site.upload("second.png", encoded(2))
        site.wait_for(second)
        assert site.verdicts(second)[0].model_version == challenger
        assert worker.stop() == 0
    made = load_bundle(tmp_path / "cache" / challenger)
    assert made.manifest.generator == bundle.manifest.generator
