"""A forge of tiny networks, and a process for kill tests.

It takes the run of slot `one`, or the abandoned one, and goes through its stages; with a stage's
name as second argument it hangs as soon as that stage left something behind, until it is killed.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detection.bundle import BUNDLE_FILE
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from training.bundles.challenger import ChallengerRecipe
from training.bundles.challenger_data import SamplingPlan
from training.data.alignment import AlignmentConfig
from training.data.augmentation import AugmentationConfig
from training.data.bundle_aligner import bundle_aligner
from training.data.selection import CollectPolicy
from training.evaluation.promotion_gate import GateLimits
from training.evaluation.shortcut_audit import AuditLimits
from training.fit.aligned_task import AlignedBatch
from training.fit.early_stopping import Patience
from training.retraining.run_state import RunPlan
from worker.database.engine import build_engine
from worker.models.bundle_store import BundleStore
from worker.models.registry import ModelsRegistry
from worker.retraining.bucket_state import AlignmentModels, RunContext
from worker.retraining.bundle_access import BundleAccess
from worker.retraining.runs import Runs
from worker.retraining.stage_runner import run_stages
from worker.retraining.stages import stages_of
from worker.settings import load_settings
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from worker.retraining.stage_runner import Progress, Stage
    from worker.storage.interface import Storage

POLICY = CollectPolicy(
    sources=frozenset({"web", "camera"}),
    trusted_sources=frozenset({"camera"}),
    evaluation=0.2,
    calibration=0.5,
)
#: Random networks move and blur more than an autoencoder may: what is tested is not the audit.
LIMITS = AuditLimits(
    probe_auc=1.0,
    sharpness_auc=1.0,
    shift_px=1e3,
    tone_levels=1e3,
    mmd_squared=2.0,
    frechet=1e6,
    information=1.0,
)


def tiny_recipe(steps: int = 2) -> ChallengerRecipe:
    """A recipe that trains for a second."""
    recipe = ChallengerRecipe(
        sampling=SamplingPlan(
            augmentation=AugmentationConfig(crop=32, margin=8),
            validation=0.4,
            view_copies=1,
            partial_noise_images=4,
        ),
        aligned_batch=AlignedBatch(pairs=1, unpaired=1),
        lare_batch_size=4,
        patience=Patience(every=2, steps=100),
        validation_batches=1,
    )
    loop = replace(
        recipe.loop,
        steps=steps,
        learning_rate=1e-2,
        bfloat16=False,
        checkpoint_every=1,
        warmup_steps=1,
    )
    return replace(recipe, loop=loop)


def build_run_context(engine: Engine, storage: Storage, bucket: str, folder: Path) -> RunContext:
    """Put tiny networks and this test's services together; the bundle is made once a folder."""
    if not (folder / "champion" / BUNDLE_FILE).is_file():
        build_tiny_bundle(folder / "champion")
    bundle_access = BundleAccess(
        registry=ModelsRegistry(engine),
        bundles=BundleStore(storage, bucket),
        default=str(folder / "champion"),
        cache=folder / "cache",
    )

    def load_models() -> AlignmentModels:
        return AlignmentModels(
            aligners=[bundle_aligner(bundle_access.current())],
            features=lambda images: np.array([image.mean((0, 1)) for image in images]),
            space="means",
        )

    return RunContext(
        engine=engine,
        storage=storage,
        bucket=bucket,
        policy=POLICY,
        max_bytes=2**20,
        load_models=load_models,
        bundle_access=bundle_access,
        work_dir=folder / "work",
        plan=RunPlan(
            recipe=tiny_recipe(),
            device="cpu",
            data_licence="the site's own images",
            alignment=AlignmentConfig(shard_images=64),
            audit_limits=LIMITS,
            gate_limits=GateLimits(bootstraps=50),
        ),
    )


@dataclass(frozen=True, slots=True)
class Hanging:
    """A stage that does its work and then never says so."""

    stage: Stage
    mark: Path

    @property
    def name(self) -> str:
        """The stage's own."""
        return self.stage.name

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Work, leave a mark, and hang."""
        self.stage.run(progress)
        self.mark.write_text(self.name)
        while True:
            time.sleep(1)


def main() -> None:
    """Run the stages of slot `one`."""
    folder, hangs_in = Path(sys.argv[1]), sys.argv[2]
    settings = load_settings()
    engine, storage = build_engine(settings.postgres), S3Storage(settings.s3)
    context = build_run_context(engine, storage, settings.s3.buckets[0], folder)
    runs = Runs(engine, holder=f"killed in {hangs_in}", lease=timedelta(seconds=2))
    run = runs.begin("one", trigger="test") or runs.resume()
    assert run is not None
    run_stages(
        run,
        [
            Hanging(stage, folder / f"{hangs_in}.mark") if stage.name == hangs_in else stage
            for stage in stages_of(context)
        ],
        runs,
    )


if __name__ == "__main__":
    main()
