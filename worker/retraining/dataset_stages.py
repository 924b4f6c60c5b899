"""The stages that turn confirmed images into an audited, sealed data set.

Each may be run again after a crash: a snapshot is found by its place, shards by their plan, and a
sealed snapshot stays as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.alignment import AlignmentConfig, build_pairs
from training.data.manifest import REAL
from training.data.selection import select
from training.data.shaders import series
from training.data.shards import load_dataset, read_samples
from training.evaluation.shortcut_audit import MIN_SIDE_IMAGES, pair_files, run_audit
from worker.retraining.candidates import candidates, known_bytes, known_groups
from worker.retraining.dataset_store import BucketStore, StoredOriginal
from worker.retraining.runs import Ending
from worker.retraining.snapshots import Snapshots
from worker.retraining.stage_runner import RunEnds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Engine

    from training.data.aligners import Aligner
    from training.data.selection import CollectPolicy
    from training.evaluation.shortcut_audit import AuditLimits, Features
    from worker.retraining.stage_runner import Progress, Stage
    from worker.storage.interface import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentModels:
    """The models a run uses: aligners and the feature extractor."""

    aligners: Sequence[Aligner]
    features: Features
    space: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetContext:
    """Dependencies of the data set's stages; the first stage that needs networks loads them."""

    engine: Engine
    storage: Storage
    bucket: str
    policy: CollectPolicy
    max_bytes: int
    load_models: Callable[[], AlignmentModels]
    alignment: AlignmentConfig
    limits: AuditLimits
    shaders: int = 0

    def prefix(self, run_id: int) -> str:
        """Return where a run's data set lies."""
        return f"datasets/run-{run_id}/"

    def store(self, run_id: int) -> BucketStore:
        """Open a run's data set."""
        return BucketStore(self.storage, self.bucket, self.prefix(run_id))


@dataclass(frozen=True, slots=True)
class Collect:
    """Chooses the images and keeps the choice."""

    context: DatasetContext
    name: str = "collect"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Take the snapshot; ends the run when there is nothing new or no photograph."""
        snapshots = Snapshots(self.context.engine)
        uri = f"s3://{self.context.bucket}/{self.context.prefix(progress.run_id)}"
        snapshot_id = snapshots.find(uri)
        if snapshot_id is None:
            engine, policy = self.context.engine, self.context.policy
            selection = select(
                candidates(engine, policy),
                policy,
                known=known_groups(engine),
                known_sha256=known_bytes(engine),
            )
            reals = sum(item.label.value == REAL for item in selection.items)
            if reals < MIN_SIDE_IMAGES:
                raise RunEnds(
                    Ending.EMPTY,
                    f"{len(selection.items)} new images, {reals} of them photographs: at least"
                    f" {MIN_SIDE_IMAGES} photographs are needed"
                    f" (left out: {json.dumps(dict(selection.left_out))})",
                )
            snapshot_id = snapshots.save(selection, uri=uri)
        progress.snapshot_id = snapshot_id
        return {"snapshot": snapshot_id, "images": len(snapshots.items(snapshot_id))}


@dataclass(frozen=True, slots=True)
class Align:
    """Reconstructs the photographs and writes the shards."""

    context: DatasetContext
    name: str = "align"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Build the data set; what was built before a crash is not built again."""
        items = Snapshots(self.context.engine).items(_snapshot(progress))
        sources = [
            StoredOriginal(item, self.context.storage, self.context.max_bytes) for item in items
        ]
        dataset = build_pairs(
            [*sources, *series(self.context.shaders, seed=progress.run_id)],
            self.context.load_models().aligners,
            self.context.store(progress.run_id),
            config=self.context.alignment,
        )
        return {
            "digest": dataset.digest,
            "images": len(dataset.keys),
            "unreadable": dataset.unreadable,
        }


@dataclass(frozen=True, slots=True)
class Audit:
    """Refuses a data set whose sides can be told apart by their files; seals one that passes."""

    context: DatasetContext
    name: str = "audit"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Audit the pairs; ends the run when they are refused."""
        store = self.context.store(progress.run_id)
        dataset = load_dataset(store)
        tools = self.context.load_models()
        report = run_audit(
            pair_files(read_samples(store, dataset)),
            limits=self.context.limits,
            features=tools.features,
            space=tools.space,
        )
        if report.refusals:
            raise RunEnds(Ending.REFUSED, "; ".join(report.refusals))
        Snapshots(self.context.engine).seal(
            _snapshot(progress), digest=dataset.digest, report=json.loads(report.to_json())
        )
        return {"probe_auc": report.probes["all"].auc}


def _snapshot(progress: Progress) -> int:
    if progress.snapshot_id is None:
        raise ValueError("the collect stage left no snapshot")
    return progress.snapshot_id


def dataset_stages(context: DatasetContext) -> list[Stage]:
    """Return the stages from confirmed images to a sealed data set."""
    return [Collect(context), Align(context), Audit(context)]
