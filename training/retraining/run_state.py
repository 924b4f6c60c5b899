"""What the stages of a run read and keep, and where: the interface of a folder and of a bucket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from training.data.alignment import AlignmentConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from detection.bundle import Bundle
    from training.bundles.challenger import ChallengerRecipe, TrainedBranch
    from training.data.aligners import Aligner
    from training.data.alignment import Source
    from training.data.manifest import Entry
    from training.data.selection import Split
    from training.data.shards import SampleFiles, Store
    from training.evaluation.comparison import ClosedReport
    from training.evaluation.promotion_gate import GateDecision, GateLimits
    from training.evaluation.shortcut_audit import AlignmentReport, AuditLimits, Features


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How a challenger is made and judged, wherever the images lie.

    `most_images` bounds how many images are trained on; `generators` holds the folders of presets
    that a bundle may name; `on_progress` receives the part of the work, how much is done and how
    much there is.
    """

    recipe: ChallengerRecipe
    device: str
    data_licence: str
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    audit_limits: AuditLimits | None = None
    gate_limits: GateLimits | None = None
    most_images: int | None = None
    generators: Path | None = None
    on_progress: Callable[[str, int, int], None] = lambda *_: None


class RunState(Protocol):
    """One run: its images, and what its stages leave for each other."""

    plan: RunPlan
    #: The folder on this machine from which a killed run continues, and that of its checkpoints.
    folder: Path
    checkpoints: Path
    #: The data set of this run.
    store: Store
    #: What each finished stage returned, by its name.
    facts: dict[str, Any]

    def sources(self) -> Sequence[Source]:
        """Return the originals of this run's data set."""

    def aligners(self) -> Sequence[Aligner]:
        """Load the models that make pairs."""

    def features(self) -> tuple[Features, str]:
        """Load the feature space in which the audit measures distances, and its name."""

    def files(self, split: Split) -> Iterator[SampleFiles]:
        """Read one split, of this run's data set first."""

    def extracted(self, split: Split) -> list[Entry]:
        """Write the originals of one split into the folder."""

    def champion(self) -> Bundle:
        """Return the bundle that this run trains further."""

    def keep_audit(self, report: AlignmentReport, digest: str) -> Mapping[str, Any]:
        """Keep the audit of a data set and return facts.

        Raises `DatasetRefused` where a refusal ends the run.
        """

    def keep_branches(self, trained: Mapping[str, TrainedBranch]) -> Mapping[str, Any]:
        """Keep the weights; returns facts, `losses` (by file and step) among them."""

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights that were kept, by file."""

    def keep_challenger(self, bundle: Bundle) -> Mapping[str, Any]:
        """Keep the challenger and return facts."""

    def challenger(self) -> Bundle:
        """Return the challenger that was kept."""

    def closed_reports(self) -> tuple[list[ClosedReport], list[str]]:
        """Return the pinned reports, and the keys of those that cannot be read."""

    def keep_report(self, page: Path, decision: GateDecision) -> str:
        """Keep the page with the plots beside it; returns its address."""

    def origin_facts(self) -> Mapping[str, Any]:
        """Return what the bundle states of its origin beside the champion."""

    def page_facts(self) -> Mapping[str, Any]:
        """Return what the page states beside champion, challenger and data set."""
