"""The state of a training run in a bucket and the ledger.

What another machine needs to continue is in object storage: weights and bundles are stored whole
before they are named. What only saves time is in the work folder.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from safetensors.torch import load, save

from detection.score import Label
from training.data.originals import Unreadable
from training.data.shaders import SHADERS, series
from training.data.shards import DatasetError, extract, load_dataset, read_samples
from training.evaluation.comparison import ClosedReport
from worker.retraining.candidates import revoked_images
from worker.retraining.dataset_store import BucketStore, StoredOriginal
from worker.retraining.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Engine
    from torch import Tensor

    from detection.bundle import Bundle
    from training.bundles.challenger import TrainedBranch
    from training.data.aligners import Aligner
    from training.data.alignment import Source
    from training.data.manifest import Entry
    from training.data.selection import CollectPolicy, Split
    from training.data.shards import SampleFiles, Store
    from training.evaluation.promotion_gate import GateDecision
    from training.evaluation.shortcut_audit import AlignmentReport, Features
    from training.retraining.run_state import RunPlan
    from worker.retraining.bundle_access import BundleAccess
    from worker.retraining.stage_runner import Progress
    from worker.storage.interface import Storage

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentModels:
    """The models a run uses: aligners and the feature extractor."""

    aligners: Sequence[Aligner]
    features: Features
    space: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Dependencies of the stages of any run; the first stage that needs networks loads them."""

    engine: Engine
    storage: Storage
    bucket: str
    policy: CollectPolicy
    max_bytes: int
    load_models: Callable[[], AlignmentModels]
    bundle_access: BundleAccess
    work_dir: Path
    plan: RunPlan
    shaders: int = 0

    def prefix(self, run_id: int) -> str:
        """Return where a run's data set lies."""
        return f"datasets/run-{run_id}/"

    def store(self, run_id: int) -> BucketStore:
        """Open a run's data set."""
        return BucketStore(self.storage, self.bucket, self.prefix(run_id))

    def remove_other_runs(self, run_id: int) -> None:
        """Remove what other runs left in the work folder: there is one run at a time."""
        for folder in self.work_dir.glob("run-*"):
            if folder.name != f"run-{run_id}":
                shutil.rmtree(folder, ignore_errors=True)


class BucketState:
    """The `training.retraining.run_state.RunState` of one run of the ledger."""

    def __init__(self, context: RunContext, progress: Progress) -> None:
        self._context, self._progress = context, progress
        self._snapshots = Snapshots(context.engine)
        self.plan, self.facts = context.plan, progress.facts
        self.folder = self.checkpoints = context.work_dir / f"run-{progress.run_id}"
        self.store: Store = context.store(progress.run_id)

    def sources(self) -> list[Source]:
        """Return the images of the snapshot, and renderings of this run's own."""
        context = self._context
        images = [
            StoredOriginal(item, context.storage, context.max_bytes)
            for item in self._snapshots.items(self._snapshot())
        ]
        return [*images, *series(context.shaders, seed=self._progress.run_id)]

    def aligners(self) -> Sequence[Aligner]:
        """Load the models of the champion."""
        return self._context.load_models().aligners

    def features(self) -> tuple[Features, str]:
        """Load the models of the champion."""
        models = self._context.load_models()
        return models.features, models.space

    def files(self, split: Split) -> Iterator[SampleFiles]:
        """Read one side of every sealed data set, the newest first, without what was revoked.

        Nor with the renderings of earlier runs: each has new ones.
        """
        context = self._context
        gone = revoked_images(context.engine, context.policy)
        own = {one.key for one in series(context.shaders, seed=self._progress.run_id)}
        for _, uri in self._sealed():
            prefix = uri.removeprefix(f"s3://{context.bucket}/")
            store = BucketStore(context.storage, context.bucket, prefix)
            for sample in read_samples(store, load_dataset(store)):
                stale = sample.source == SHADERS and sample.key not in own
                if sample.split == split and sample.key not in gone and not stale:
                    yield sample

    def extracted(self, split: Split) -> list[Entry]:
        """Write one side of every sealed data set into the work folder."""
        return extract(self.files(split), self.folder / split)

    def champion(self) -> Bundle:
        """Return the bundle that is champion when training begins, and the same one afterwards."""
        trained = self.facts.get("train")
        access = self._context.bundle_access
        return access.current() if trained is None else access.of(trained["champion"])

    def keep_audit(self, report: AlignmentReport, digest: str) -> Mapping[str, Any]:
        """Seal a data set that passes; raises `DatasetRefused`."""
        report.require()
        self._snapshots.seal(self._snapshot(), digest=digest, report=json.loads(report.to_json()))
        return {"probe_auc": report.probes["all"].auc}

    def keep_branches(self, trained: Mapping[str, TrainedBranch]) -> Mapping[str, Any]:
        """Store the weights beside the data set."""
        for name, branch in trained.items():
            self.store.write(_weights_name(name), save(branch.weights))
        return {
            "replayed": [digest for digest, _ in self._sealed()][1:],
            "losses": {
                name: {str(step): round(loss, 5) for step, loss in branch.losses.items()}
                for name, branch in trained.items()
            },
        }

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Fetch the weights; raises `DatasetError` when a branch's are gone."""
        weights = {}
        for name in self.facts["train"]["branches"]:
            data = self.store.read(_weights_name(name))
            if data is None:
                raise DatasetError(f"the weights {_weights_name(name)} of this run are gone")
            weights[name] = load(data)
        return weights

    def keep_challenger(self, bundle: Bundle) -> Mapping[str, Any]:
        """Upload the bundle."""
        return {"uri": self._context.bundle_access.bundles.upload(bundle)}

    def challenger(self) -> Bundle:
        """Fetch the bundle, registered or not."""
        made = self.facts["calibrate"]
        return self._context.bundle_access.fetch(made["uri"], made["model_version"])

    def closed_reports(self) -> tuple[list[ClosedReport], list[str]]:
        """Fetch the pinned reports; those that cannot be read are logged."""
        closed, unreadable = [], []
        for item in self._snapshots.pinned():
            original = StoredOriginal(item, self._context.storage, self._context.max_bytes)
            try:
                pixels = original.read().pixels
            except Unreadable as error:
                _log.warning("pinned_report_unreadable", image=original.key, error=str(error))
                unreadable.append(original.key)
            else:
                truth = Label(item.label)
                closed.append(ClosedReport(key=original.key, truth=truth, pixels=pixels))
        return closed, unreadable

    def keep_report(self, page: Path, _decision: GateDecision) -> str:
        """Upload the page with its plots."""
        bucket, prefix = self._context.bucket, f"reports/run-{self._progress.run_id}/"
        reports = BucketStore(self._context.storage, bucket, prefix)
        for file in sorted(page.parent.iterdir()):
            reports.write(file.name, file.read_bytes())
        return f"s3://{bucket}/{prefix}{page.name}"

    def origin_facts(self) -> Mapping[str, Any]:
        """Name the run, and the earlier data sets that were trained on, too."""
        return {"run": self._progress.run_id, "replayed": self.facts["train"]["replayed"]}

    def page_facts(self) -> Mapping[str, Any]:
        """Name the run."""
        return {"training run": self._progress.run_id}

    def _sealed(self) -> list[tuple[str, str]]:
        return self._snapshots.sealed(self._progress.snapshot_id)

    def _snapshot(self) -> int:
        if self._progress.snapshot_id is None:
            raise ValueError("the collect stage left no snapshot")
        return self._progress.snapshot_id


def _weights_name(branch: str) -> str:
    return f"challenger/{branch}"
