"""The stages of a training run, from confirmed images to a challenger in shadow.

Before and after those of `training.retraining.stages` the ledger and the registry have their own:
collect, register and shadow. Each may be run again after a crash: a snapshot is found by its place,
a sealed one stays as it is, and a bundle is whole in object storage before it is registered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.manifest import REAL
from training.data.selection import select
from training.evaluation.calibration import CalibrationError
from training.evaluation.shortcut_audit import MIN_SIDE_IMAGES, DatasetRefused
from training.retraining.stages import STAGES
from worker.retraining.bucket_state import BucketState
from worker.retraining.bundle_access import ACTOR
from worker.retraining.candidates import candidates, known_bytes, known_groups
from worker.retraining.runs import Ending
from worker.retraining.snapshots import Snapshots
from worker.retraining.stage_runner import RunEnds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.retraining.bucket_state import RunContext
    from worker.retraining.stage_runner import Progress, Stage


@dataclass(frozen=True, slots=True)
class Collect:
    """Chooses the images and keeps the choice."""

    context: RunContext
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
class SharedStage:
    """A stage of `training.retraining.stages`, over the bucket of a run."""

    context: RunContext
    name: str

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Run it; ends the run when the data set is refused or supports no threshold."""
        if self.name == "train":
            self.context.remove_other_runs(progress.run_id)
        try:
            return STAGES[self.name](BucketState(self.context, progress))
        except (CalibrationError, DatasetRefused) as error:
            raise RunEnds(Ending.REFUSED, str(error)) from error


@dataclass(frozen=True, slots=True)
class Register:
    """Adds the challenger to the registry, whatever the gate said: so that it can be forced."""

    context: RunContext
    name: str = "register"

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Add the row; the bundle has been whole in object storage since it was calibrated."""
        made, snapshot = progress.facts["calibrate"], progress.facts["align"]["digest"]
        bundle = BucketState(self.context, progress).challenger()
        self.context.bundle_access.register(bundle, made["uri"], snapshot=snapshot)
        return {"model_version": made["model_version"], "uri": made["uri"]}


@dataclass(frozen=True, slots=True)
class EnterShadow:
    """Puts a challenger that passed into shadow, or ends the run as refused."""

    context: RunContext
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


def stages_of(context: RunContext) -> list[Stage]:
    """Return every stage of a run, in order."""
    shared = [SharedStage(context, name) for name in STAGES]
    return [Collect(context), *shared, Register(context), EnterShadow(context)]
