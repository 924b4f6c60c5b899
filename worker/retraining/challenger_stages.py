"""The stages from a sealed data set to a challenger that is registered, and in shadow if it passed.

Each may be run again after a crash: training resumes from checkpoints, weights and bundles are
stored whole before they are named, scores are kept line by line. What another machine needs to go
on is in object storage; what only saves time is in the work folder.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import structlog
from safetensors.torch import load, save

from detection.detector import Detector
from detection.score import Label
from training.bundles.challenger import (
    ChallengerOrigin,
    calibrate_challenger,
    fine_tune,
    require_calibration,
)
from training.data.originals import Unreadable
from training.data.selection import Split
from training.data.shaders import SHADERS, series
from training.data.shards import DatasetError, extract, load_dataset, read_samples
from training.evaluation.calibration import CalibrationError
from training.evaluation.comparison import ClosedReport, compare_models, pinned_reports, share_found
from training.evaluation.comparison_page import write_report
from training.evaluation.promotion_gate import GateDecision, decide
from worker.retraining.bundle_access import ACTOR
from worker.retraining.candidates import revoked_images
from worker.retraining.dataset_store import BucketStore, StoredOriginal
from worker.retraining.runs import Ending
from worker.retraining.snapshots import Snapshots
from worker.retraining.stage_runner import RunEnds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from training.bundles.challenger import ChallengerRecipe
    from training.data.manifest import Entry
    from training.data.shards import SampleFiles
    from training.evaluation.promotion_gate import GateLimits, PairedPredictions
    from worker.retraining.bundle_access import BundleAccess
    from worker.retraining.dataset_stages import DatasetContext
    from worker.retraining.stage_runner import Progress, Stage

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengerContext:
    """Dependencies of the challenger stages."""

    dataset_context: DatasetContext
    bundle_access: BundleAccess
    work_dir: Path
    device: str
    recipe: ChallengerRecipe
    limits: GateLimits

    def folder(self, progress: Progress) -> Path:
        """Return the run's part of the work folder."""
        return self.work_dir / f"run-{progress.run_id}"

    def remove_other_runs(self, progress: Progress) -> None:
        """Remove what other runs left in the work folder: there is one run at a time."""
        for folder in self.work_dir.glob("run-*"):
            if folder != self.folder(progress):
                shutil.rmtree(folder, ignore_errors=True)

    def stored(self, progress: Progress) -> list[tuple[str, BucketStore]]:
        """Return digest and place of every sealed data set, that of the run first."""
        bucket = self.dataset_context.bucket
        return [
            (
                digest,
                BucketStore(
                    self.dataset_context.storage, bucket, uri.removeprefix(f"s3://{bucket}/")
                ),
            )
            for digest, uri in Snapshots(self.dataset_context.engine).sealed(progress.snapshot_id)
        ]

    def files(self, progress: Progress, split: Split) -> Iterator[SampleFiles]:
        """Read one side of every sealed data set, the newest first, without what was revoked.

        Nor with the renderings of earlier runs: each has new ones.
        """
        gone = revoked_images(self.dataset_context.engine, self.dataset_context.policy)
        own = {one.key for one in series(self.dataset_context.shaders, seed=progress.run_id)}
        for _, store in self.stored(progress):
            for sample in read_samples(store, load_dataset(store)):
                stale = sample.source == SHADERS and sample.key not in own
                if sample.split == split and sample.key not in gone and not stale:
                    yield sample

    def extracted(self, progress: Progress, split: Split) -> list[Entry]:
        """Write one side of every sealed data set into the work folder."""
        return extract(self.files(progress, split), self.folder(progress) / split)


@dataclass(frozen=True, slots=True)
class Train:
    """Teaches the champion's branches further."""

    context: ChallengerContext
    name: str = "train"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Train, and store each branch's weights; ends the run when nothing could be calibrated."""
        context, began = self.context, time.monotonic()
        context.remove_other_runs(progress)
        try:
            require_calibration(context.extracted(progress, Split.CALIBRATION))
        except CalibrationError as error:
            raise RunEnds(Ending.REFUSED, str(error)) from error
        champion = context.bundle_access.current()
        tuned = fine_tune(
            islice(context.files(progress, Split.TRAINING), context.recipe.sampling.most_images),
            champion,
            context.recipe,
            context.folder(progress),
            device=context.device,
        )
        store = context.dataset_context.store(progress.run_id)
        for name, branch in tuned.items():
            store.write(_weights_name(name), save(branch.weights))
        return {
            "champion": champion.model_version,
            "branches": sorted(tuned),
            "replayed": [digest for digest, _ in context.stored(progress)][1:],
            "losses": {name: _stated(branch.losses) for name, branch in tuned.items()},
            "took_s": round(time.monotonic() - began, 1),
        }


def _stated(losses: Mapping[int, float]) -> dict[str, float]:
    return {str(step): round(loss, 5) for step, loss in losses.items()}


def _weights_name(branch: str) -> str:
    return f"challenger/{branch}"


@dataclass(frozen=True, slots=True)
class Calibrate:
    """Fits fusion and thresholds, and stores the bundle."""

    context: ChallengerContext
    name: str = "calibrate"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Write and upload the bundle; ends the run when no operating point is supported."""
        context, trained = self.context, progress.facts["train"]
        store = context.dataset_context.store(progress.run_id)
        weights = {}
        for name in trained["branches"]:
            data = store.read(_weights_name(name))
            if data is None:
                raise DatasetError(f"the weights {_weights_name(name)} of this run are gone")
            weights[name] = load(data)
        families = {
            sample.source
            for sample in context.files(progress, Split.TRAINING)
            if sample.label == Label.GENERATED
        }
        digest = progress.facts["align"]["digest"]
        facts = {
            "run": progress.run_id,
            "champion": trained["champion"],
            "replayed": trained["replayed"],
        }
        try:
            bundle = calibrate_challenger(
                context.folder(progress) / "challenger",
                context.bundle_access.of(trained["champion"]),
                weights,
                context.extracted(progress, Split.CALIBRATION),
                ChallengerOrigin(
                    snapshot_digest=digest,
                    families=sorted(families),
                    data_licence="the site's own images",
                    facts=facts,
                ),
                device=context.device,
            )
        except CalibrationError as error:
            raise RunEnds(Ending.REFUSED, str(error)) from error
        points = [point.name for point in bundle.manifest.operating_points if point.supported]
        return {
            "model_version": bundle.model_version,
            "uri": context.bundle_access.bundles.upload(bundle),
            "supported": points,
        }


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Scores the evaluation side with champion and challenger."""

    context: ChallengerContext
    name: str = "evaluate"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Score; the scores stay in the work folder."""
        began = time.monotonic()
        tiers = _contest(self.context, progress, *_rivals(self.context, progress))
        images = len(tiers["clean"].generated) if tiers else 0
        return {
            "images": images,
            "shares": share_found(tiers),
            "took_s": round(time.monotonic() - began, 1),
        }


def _rivals(context: ChallengerContext, progress: Progress) -> tuple[Detector, Detector]:
    champion = context.bundle_access.of(progress.facts["train"]["champion"])
    made = progress.facts["calibrate"]
    challenger = context.bundle_access.fetch(made["uri"], made["model_version"])
    return (
        Detector(champion, device=context.device),
        Detector(challenger, device=context.device),
    )


def _contest(
    context: ChallengerContext, progress: Progress, champion: Detector, challenger: Detector
) -> dict[str, PairedPredictions]:
    """Compare both on the evaluation side; empty when there is no image on it."""
    entries = context.extracted(progress, Split.EVALUATION)
    if not entries:
        return {}
    added = set(load_dataset(context.dataset_context.store(progress.run_id)).keys)
    return compare_models(
        champion,
        challenger,
        entries,
        context.folder(progress) / "scores",
        new=[entry.path for entry in entries if entry.path.stem in added],
    )


@dataclass(frozen=True, slots=True)
class Gate:
    """Holds the challenger against the champion and records the gate's decision."""

    context: ChallengerContext
    name: str = "gate"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Decide, and store the report; a refusal ends the run only after the registration."""
        context = self.context
        champion, challenger = _rivals(context, progress)
        tiers = _contest(context, progress, champion, challenger)
        closed, unreadable = self._closed_reports()
        pinned = pinned_reports(champion, challenger, closed)
        decision = (
            decide(tiers, pinned, limits=context.limits) if tiers else GateDecision.without_images()
        )
        rate = decision.false_positive_rate
        return asdict(decision) | {
            "false_positive_rate": None if math.isnan(rate) else rate,
            "pinned": len(pinned),
            "unreadable": unreadable,
            "report": self._report(progress, decision, tiers),
        }

    def _closed_reports(self) -> tuple[list[ClosedReport], list[str]]:
        dataset_context = self.context.dataset_context
        closed, unreadable = [], []
        for item in Snapshots(dataset_context.engine).pinned():
            original = StoredOriginal(item, dataset_context.storage, dataset_context.max_bytes)
            try:
                pixels = original.read().pixels
            except Unreadable as error:
                _log.warning("pinned_report_unreadable", image=original.key, error=str(error))
                unreadable.append(original.key)
            else:
                closed.append(
                    ClosedReport(key=original.key, truth=Label(item.label), pixels=pixels)
                )
        return closed, unreadable

    def _report(
        self, progress: Progress, decision: GateDecision, tiers: Mapping[str, PairedPredictions]
    ) -> str:
        """Write the page with its plots, store it and return its address."""
        context, bucket = self.context, self.context.dataset_context.bucket
        trained = progress.facts["train"]
        page = write_report(
            context.folder(progress) / "report",
            decision,
            tiers,
            {
                name.removesuffix(".safetensors"): {int(step): loss for step, loss in rows.items()}
                for name, rows in trained["losses"].items()
            },
            facts={
                "champion": trained["champion"],
                "challenger": progress.facts["calibrate"]["model_version"],
                "data set": progress.facts["align"]["digest"],
                "training run": progress.run_id,
            },
        )
        reports = BucketStore(
            context.dataset_context.storage, bucket, f"reports/run-{progress.run_id}/"
        )
        for file in sorted(page.parent.iterdir()):
            reports.write(file.name, file.read_bytes())
        return f"s3://{bucket}/reports/run-{progress.run_id}/{page.name}"


@dataclass(frozen=True, slots=True)
class Register:
    """Adds the challenger to the registry, whatever the gate said: so that it can be forced."""

    context: ChallengerContext
    name: str = "register"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Add the row; the bundle has been whole in object storage since it was calibrated."""
        made = progress.facts["calibrate"]
        bundle_access = self.context.bundle_access
        bundle = bundle_access.fetch(made["uri"], made["model_version"])
        snapshot = progress.facts["align"]["digest"]
        bundle_access.register(bundle, made["uri"], snapshot=snapshot)
        return {"model_version": made["model_version"], "uri": made["uri"]}


@dataclass(frozen=True, slots=True)
class EnterShadow:
    """Puts a challenger that passed into shadow, or ends the run as refused."""

    context: ChallengerContext
    name: str = "shadow"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Follow the gate's decision; raises `RunEnds` with its reasons in words."""
        gate = progress.facts["gate"]
        if not gate["passed"]:
            raise RunEnds(Ending.REFUSED, "; ".join(gate["reasons"]))
        digest = progress.facts["register"]["model_version"]
        reason = f"training run {progress.run_id} passed the gate: {'; '.join(gate['reasons'])}"
        self.context.bundle_access.registry.put_in_shadow(digest, actor=ACTOR, reason=reason)
        return {"model_version": digest}


def challenger_stages(context: ChallengerContext) -> list[Stage]:
    """Return the stages from a sealed data set to the end of a run."""
    return [
        Train(context),
        Calibrate(context),
        Evaluate(context),
        Gate(context),
        Register(context),
        EnterShadow(context),
    ]
