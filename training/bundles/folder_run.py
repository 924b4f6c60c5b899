"""One turn of the loop on a folder of labelled images, without any service.

1. pairs of every photograph through an autoencoder; 2. the alignment audit; 3. both
branches taught further; 4. calibration; 5. champion and challenger on the evaluation side; 6. the
gate and a page about it. Each part is found again by a run that was killed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from detection.detector import Detector
from training.bundles.challenger import (
    ChallengerOrigin,
    calibrate_challenger,
    fine_tune,
    require_calibration,
)
from training.data.alignment import AlignmentConfig, batch_for, build_pairs
from training.data.bundle_aligner import bundle_aligner
from training.data.manifest import load_manifest
from training.data.originals import read_original
from training.data.samples import check_images
from training.data.selection import CollectPolicy, Split, split_of
from training.data.shaders import series
from training.data.shards import FolderStore, extract, read_samples
from training.evaluation.comparison import compare_models
from training.evaluation.comparison_page import write_report
from training.evaluation.feature_space import BundleFeatures
from training.evaluation.promotion_gate import GateDecision, decide
from training.evaluation.shortcut_audit import pair_files, run_audit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from detection.bundle import Bundle
    from training.bundles.challenger import ChallengerRecipe
    from training.data.aligners import Aligner
    from training.data.alignment import Source
    from training.data.manifest import Entry
    from training.data.originals import Original
    from training.data.shards import SampleFiles
    from training.evaluation.promotion_gate import GateLimits
    from training.evaluation.shortcut_audit import AuditLimits


_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRunResult:
    """What a turn left: the challenger, what the gate says of it, and the page."""

    bundle: Bundle
    decision: GateDecision
    report: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRunOptions:
    """How a folder is used: which pairs are made, the shares of its groups, what the audit may do.

    Without an aligner pairs are made by the champion's own autoencoder; of `shaders` procedural
    images, too. `despite_audit` teaches what the audit refuses; the bundle and the page say so.
    """

    data_licence: str
    aligner: Aligner | None = None
    shares: CollectPolicy = field(default_factory=CollectPolicy)
    alignment_limits: AuditLimits | None = None
    shaders: int = 0
    despite_audit: bool = False
    gate_limits: GateLimits | None = None


@dataclass(frozen=True, slots=True)
class _ListedImage:
    """A listed image; its key is its content's."""

    entry: Entry
    key: str
    shares: CollectPolicy

    def read(self) -> Original:
        return read_original(
            self.entry.path.read_bytes(),
            key=self.key,
            group=self.entry.group,
            source=self.entry.set,
            label=self.entry.label,
            split=split_of(self.entry.group, self.shares),
        )


def run_on_folder(
    data: Path,
    champion: Bundle,
    out: Path,
    recipe: ChallengerRecipe,
    options: FolderRunOptions,
    *,
    device: str = "cpu",
    on_progress: Callable[[str, int, int], None],
) -> FolderRunResult:
    """Make a challenger in `out/challenger` of a folder's images; the page is in `out/report`.

    `on_progress` hears the part of the work, how much is done and how much there is. What is
    missing, broken or too small is left out: the page counts it, the log names it. Raises
    `DatasetRefused` when files betray a side, and `CalibrationError` with too few images.
    """
    inventory = check_images(load_manifest(data), data)
    for name, why in inventory.refused.items():
        _log.warning("image_left_out", file=name, why=why)
    digests = {inventory.digests[entry.path]: entry for entry in inventory.entries}
    listed = [_ListedImage(entry, digest, options.shares) for digest, entry in digests.items()]
    sources: list[Source] = [*listed, *series(options.shaders)]
    store = FolderStore(out / "dataset")
    dataset = build_pairs(
        sources,
        [options.aligner or bundle_aligner(champion, device=device)],
        store,
        config=AlignmentConfig(batch_size=batch_for(device)),
        on_image=lambda done: on_progress("reconstructing", done, len(sources)),
    )

    def files(split: Split) -> Iterator[SampleFiles]:
        return (sample for sample in read_samples(store, dataset) if sample.split == split)

    calibration = extract(files(Split.CALIBRATION), out / Split.CALIBRATION)
    require_calibration(calibration)
    features = BundleFeatures(champion, device=device)
    alignment = run_audit(
        pair_files(read_samples(store, dataset)),
        limits=options.alignment_limits,
        features=features,
        space=features.name,
    )
    (out / "alignment.md").write_text(alignment.to_markdown() + "\n", encoding="utf-8")
    if not options.despite_audit:
        alignment.require()
    refused = "; ".join(alignment.refusals)
    facts = {"taught although the audit refused": refused} if refused else {}
    tuned = fine_tune(
        files(Split.TRAINING),
        champion,
        recipe,
        out / "run",
        device=device,
        on_step=lambda name, step: on_progress(f"training {name}", step, recipe.loop.steps),
    )
    families = {sample.source for sample in files(Split.TRAINING) if sample.label == "generated"}
    challenger = calibrate_challenger(
        out / "challenger",
        champion,
        {name: branch.weights for name, branch in tuned.items()},
        calibration,
        ChallengerOrigin(
            snapshot_digest=dataset.digest,
            families=sorted(families),
            data_licence=options.data_licence,
            facts={"champion": champion.model_version, **facts},
        ),
        device=device,
    )
    entries = extract(files(Split.EVALUATION), out / Split.EVALUATION)
    tiers = (
        compare_models(
            Detector(champion, device=device),
            Detector(challenger, device=device),
            entries,
            out / "scores",
            on_image=lambda form, done: on_progress(f"scoring {form}", done, len(entries)),
        )
        if entries
        else {}
    )
    decision = (
        decide(tiers, [], limits=options.gate_limits) if tiers else GateDecision.without_images()
    )
    report = write_report(
        out / "report",
        decision,
        tiers,
        {name.removesuffix(".safetensors"): branch.losses for name, branch in tuned.items()},
        facts={
            "champion": champion.model_version,
            "challenger": challenger.model_version,
            "data set": dataset.digest,
            "images missing, unreadable or too small": len(inventory.refused),
            **facts,
        },
    )
    return FolderRunResult(bundle=challenger, decision=decision, report=report)
