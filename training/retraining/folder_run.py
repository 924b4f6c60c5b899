"""A run on a folder of labelled images, without any service.

Every stage runs again after a kill: pairs, checkpoints and scores that are in the folder are read
back, and the rest is computed again to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from training.bundles.challenger import require_calibration
from training.bundles.writer import require_replaceable
from training.data.alignment import AlignmentConfig, batch_for
from training.data.bundle_aligner import pair_aligners
from training.data.manifest import load_manifest
from training.data.originals import read_original
from training.data.samples import check_images
from training.data.selection import CollectPolicy, Split, split_of
from training.data.shaders import series
from training.data.shards import FolderStore, extract, load_dataset, read_samples
from training.evaluation.feature_space import BundleFeatures
from training.retraining.run_state import RunPlan
from training.retraining.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from detection.bundle import Bundle
    from training.bundles.challenger import ChallengerRecipe, TrainedBranch
    from training.data.aligners import Aligner
    from training.data.alignment import Source
    from training.data.manifest import Entry
    from training.data.originals import Original
    from training.data.shards import SampleFiles, Store
    from training.evaluation.comparison import ClosedReport
    from training.evaluation.promotion_gate import GateDecision, GateLimits
    from training.evaluation.shortcut_audit import AlignmentReport, AuditLimits, Features


_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRunResult:
    """The result of a turn: the challenger, the gate's decision, and the page."""

    bundle: Bundle
    decision: GateDecision
    report: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRunOptions:
    """Options of a turn: which pairs are made, the shares of the groups, what the audit may do.

    Without `aligners` pairs are made by the champion's own autoencoder; of `shaders` procedural
    images, too. `draw_codec` is as `AlignmentConfig` has it. `generators` holds the folders of
    presets that the champion may name. `despite_audit` teaches what the audit refuses; the bundle
    and the page say so.
    """

    data_licence: str
    aligners: Sequence[Aligner] = ()
    generators: Path | None = None
    shares: CollectPolicy = field(default_factory=CollectPolicy)
    alignment_limits: AuditLimits | None = None
    shaders: int = 0
    draw_codec: bool = False
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


class _FolderState:
    """The `RunState` of a folder; one process runs every stage, so that results stay in memory."""

    def __init__(
        self, data: Path, champion: Bundle, out: Path, plan: RunPlan, options: FolderRunOptions
    ) -> None:
        self.plan, self.folder = plan, out
        self.store: Store = FolderStore(out / "dataset")
        self.facts: dict[str, Any] = {}
        self._champion, self._options = champion, options
        self._inventory = check_images(load_manifest(data), data)
        self.checkpoints = out / "run" / self._digest()[:16]
        self._refused: dict[str, str] = {}
        self._extracted: dict[Split, list[Entry]] = {}
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._challenger: Bundle
        self.decision: GateDecision
        self.page: Path
        for name, why in self._inventory.refused.items():
            _log.warning("image_left_out", file=name, why=why)

    def _digest(self) -> str:
        """Digest what weights come of: a run of anything else does not go on with these."""
        options = self._options
        images = [
            (self._inventory.digests[one.path], one.label, one.set, one.group)
            for one in self._inventory.entries
        ]
        made_of = [
            self._champion.model_version,
            images,
            [one.identity for one in options.aligners],
            [options.shares.evaluation, options.shares.calibration],
            options.shaders,
            options.draw_codec,
            asdict(self.plan.recipe),
        ]
        return hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()

    def sources(self) -> list[Source]:
        listed = {self._inventory.digests[one.path]: one for one in self._inventory.entries}
        shares = self._options.shares
        images = [_ListedImage(entry, digest, shares) for digest, entry in listed.items()]
        return [*images, *series(self._options.shaders)]

    def aligners(self) -> list[Aligner]:
        return pair_aligners(
            self._champion,
            self._options.aligners,
            device=self.plan.device,
            generators=self.plan.generators,
        )

    def features(self) -> tuple[Features, str]:
        features = BundleFeatures(self._champion, device=self.plan.device)
        return features, features.name

    def files(self, split: Split) -> Iterator[SampleFiles]:
        every = read_samples(self.store, load_dataset(self.store))
        return (sample for sample in every if sample.split == split)

    def extracted(self, split: Split) -> list[Entry]:
        if split not in self._extracted:
            self._extracted[split] = extract(self.files(split), self.folder / split)
        return self._extracted[split]

    def champion(self) -> Bundle:
        return self._champion

    def keep_audit(self, report: AlignmentReport, _digest: str) -> dict[str, Any]:
        (self.folder / "alignment.md").write_text(report.to_markdown() + "\n", encoding="utf-8")
        if not self._options.despite_audit:
            report.require()
        if report.refusals:
            self._refused = {"taught although the audit refused": "; ".join(report.refusals)}
        return {}

    def keep_branches(self, trained: Mapping[str, TrainedBranch]) -> dict[str, Any]:
        self._weights = {name: branch.weights for name, branch in trained.items()}
        return {"losses": {name: branch.losses for name, branch in trained.items()}}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        return self._weights

    def keep_challenger(self, bundle: Bundle) -> dict[str, Any]:
        self._challenger = bundle
        return {}

    def challenger(self) -> Bundle:
        return self._challenger

    def closed_reports(self) -> tuple[list[ClosedReport], list[str]]:
        return [], []

    def keep_report(self, page: Path, decision: GateDecision) -> str:
        self.page, self.decision = page, decision
        return str(page)

    def origin_facts(self) -> dict[str, str]:
        return self._refused

    def page_facts(self) -> dict[str, Any]:
        missing = len(self._inventory.refused)
        return {"images missing, unreadable or too small": missing, **self._refused}


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

    `on_progress` receives the part of the work, how much is done and how much there is. What is
    missing, broken or too small is left out: the page counts it, the log names it. Raises
    `SettingsError` before any image is read where `out/challenger` is no bundle or the champion,
    `DatasetRefused` when files betray a side, and `CalibrationError` with too few images.
    """
    require_replaceable(out / "challenger", champion.folder)
    plan = RunPlan(
        recipe=recipe,
        device=device,
        data_licence=options.data_licence,
        alignment=AlignmentConfig(batch_size=batch_for(device), draw_codec=options.draw_codec),
        audit_limits=options.alignment_limits,
        gate_limits=options.gate_limits,
        generators=options.generators,
        on_progress=on_progress,
    )
    state = _FolderState(data, champion, out, plan, options)
    for name, stage in STAGES.items():
        if name == "audit":
            # Too few images are refused before the audit, which takes longer.
            require_calibration(state.extracted(Split.CALIBRATION))
        state.facts[name] = stage(state)
    return FolderRunResult(bundle=state.challenger(), decision=state.decision, report=state.page)
