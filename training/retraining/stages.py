"""The stages that make a challenger and judge it: align, audit, train, calibrate, evaluate, gate.

Each is a function of the run's state. It returns facts (JSON), which the stages behind it find in
`state.facts` under its name. Each may be run again after a kill and then ends the same: data sets
are built shard by shard, training resumes from checkpoints, scores are kept line by line.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from detection.detector import Detector
from training.bundles.challenger import (
    ChallengerOrigin,
    calibrate_challenger,
    fine_tune,
    require_calibration,
)
from training.data.alignment import build_pairs
from training.data.manifest import GENERATED
from training.data.selection import Split
from training.data.shards import load_dataset, read_samples
from training.evaluation.comparison import compare_models, pinned_reports, share_found
from training.evaluation.comparison_page import write_report
from training.evaluation.promotion_gate import GateDecision, decide
from training.evaluation.shortcut_audit import pair_files, run_audit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from training.evaluation.promotion_gate import PairedPredictions
    from training.retraining.run_state import RunState

    Facts = Mapping[str, Any]


def align(state: RunState) -> Facts:
    """Reconstruct the photographs and write the shards."""
    plan, sources = state.plan, state.sources()
    dataset = build_pairs(
        sources,
        state.aligners(),
        state.store,
        config=plan.alignment,
        on_image=lambda done: plan.on_progress("reconstructing", done, len(sources)),
    )
    return {
        "digest": dataset.digest,
        "images": len(dataset.keys),
        "unreadable": dataset.unreadable,
    }


def audit(state: RunState) -> Facts:
    """Audit the pairs; raises `DatasetRefused` when their files tell the sides apart."""
    dataset = load_dataset(state.store)
    features, space = state.features()
    report = run_audit(
        pair_files(read_samples(state.store, dataset)),
        limits=state.plan.audit_limits,
        features=features,
        space=space,
    )
    return state.keep_audit(report, dataset.digest)


def train(state: RunState) -> Facts:
    """Train the champion's branches further.

    Raises `CalibrationError` before that when the result could not be calibrated.
    """
    plan, began = state.plan, time.monotonic()
    require_calibration(state.extracted(Split.CALIBRATION))
    champion = state.champion()
    trained = fine_tune(
        islice(state.files(Split.TRAINING), plan.most_images),
        champion,
        plan.recipe,
        state.checkpoints,
        device=plan.device,
        generators=plan.generators,
        on_step=lambda name, step: plan.on_progress(
            f"training {name}", step, plan.recipe.loop.steps
        ),
    )
    return {
        "champion": champion.model_version,
        "branches": sorted(trained),
        **state.keep_branches(trained),
        "took_s": _since(began),
    }


def calibrate(state: RunState) -> Facts:
    """Fit fusion and thresholds, and write the bundle; raises `CalibrationError`."""
    taught = state.files(Split.TRAINING)
    families = {sample.source for sample in taught if sample.label == GENERATED}
    champion = state.champion()
    bundle = calibrate_challenger(
        state.folder / "challenger",
        champion,
        state.weights(),
        state.extracted(Split.CALIBRATION),
        ChallengerOrigin(
            snapshot_digest=state.facts["align"]["digest"],
            families=sorted(families),
            data_licence=state.plan.data_licence,
            facts={"champion": champion.model_version, **state.origin_facts()},
        ),
        device=state.plan.device,
        generators=state.plan.generators,
    )
    return {
        "model_version": bundle.model_version,
        "supported": [point.name for point in bundle.manifest.operating_points if point.supported],
        **state.keep_challenger(bundle),
    }


def evaluate(state: RunState) -> Facts:
    """Score the evaluation side with champion and challenger; the scores stay in the folder."""
    began = time.monotonic()
    tiers = _compare(state, *_rivals(state))
    return {
        "images": len(tiers["clean"].generated) if tiers else 0,
        "shares": share_found(tiers),
        "took_s": _since(began),
    }


def gate(state: RunState) -> Facts:
    """Decide by the stored scores whether the challenger passes, and write the report."""
    champion, challenger = _rivals(state)
    tiers = _compare(state, champion, challenger)
    closed, unreadable = state.closed_reports()
    pinned = pinned_reports(champion, challenger, closed)
    limits = state.plan.gate_limits
    decision = decide(tiers, pinned, limits=limits) if tiers else GateDecision.without_images()
    rate = decision.false_positive_rate
    return asdict(decision) | {
        "false_positive_rate": None if math.isnan(rate) else rate,
        "pinned": len(pinned),
        "unreadable": unreadable,
        "report": state.keep_report(_report(state, decision, tiers), decision),
    }


#: Every stage by its name, in order; what is behind `gate` needs a registry.
STAGES: Mapping[str, Callable[[RunState], Facts]] = {
    "align": align,
    "audit": audit,
    "train": train,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "gate": gate,
}


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _rivals(state: RunState) -> tuple[Detector, Detector]:
    champion, challenger = (
        Detector(bundle, device=state.plan.device, generators=state.plan.generators)
        for bundle in (state.champion(), state.challenger())
    )
    return champion, challenger


def _compare(
    state: RunState, champion: Detector, challenger: Detector
) -> dict[str, PairedPredictions]:
    """Compare both on the evaluation side; empty when there is no image on it."""
    entries = state.extracted(Split.EVALUATION)
    if not entries:
        return {}
    added = set(load_dataset(state.store).keys)
    return compare_models(
        champion,
        challenger,
        entries,
        state.folder / "scores",
        new=[entry.path for entry in entries if entry.path.stem in added],
        on_image=lambda form, done: state.plan.on_progress(f"scoring {form}", done, len(entries)),
    )


def _report(
    state: RunState, decision: GateDecision, tiers: Mapping[str, PairedPredictions]
) -> Path:
    facts = state.facts
    return write_report(
        state.folder / "report",
        decision,
        tiers,
        {
            name.removesuffix(".safetensors"): {int(step): loss for step, loss in rows.items()}
            for name, rows in facts["train"]["losses"].items()
        },
        facts={
            "champion": facts["train"]["champion"],
            "challenger": facts["calibrate"]["model_version"],
            "data set": facts["align"]["digest"],
            **state.page_facts(),
        },
    )
