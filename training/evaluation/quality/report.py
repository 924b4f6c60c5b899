"""What the quality report states, as values; every share and area carries its interval."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from detection.fusion import OperatingPoint
    from training.evaluation.alignment_measures import Probe
    from training.evaluation.calibration import ReliabilityBin
    from training.evaluation.scoring import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RateWithInterval:
    """A share of images with its exact 95 % interval (Clopper and Pearson)."""

    hits: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One set, source or family, or a whole side, against all images of the other side.

    `seen` says whether the bundle was trained on the family, and is None of photographs. `at` maps
    a published operating point to the share at or above its threshold: false positives of
    photographs, recall of generated images; `flagged` and `unsure` are shares by label. Areas under
    the ROC curve are None when the folder holds one side only; `gain` is what fusion gains over
    `best_branch`, the better branch on these very images.
    """

    name: str
    kind: str
    generated: bool
    seen: bool | None
    images: int
    auc: Interval | None
    branches: Mapping[str, Interval]
    best_branch: str | None
    gain: Interval | None
    at: Mapping[str, RateWithInterval]
    flagged: RateWithInterval
    unsure: RateWithInterval


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFigures:
    """The figures of one form; calibration is stated at even odds, as the fusion was fitted."""

    groups: tuple[Group, ...]
    calibration_error: float | None
    bins: tuple[ReliabilityBin, ...]

    def of(self, kind: str) -> list[Group]:
        """Return the groups of a kind: "side", "family", "set" or "source"."""
        return [group for group in self.groups if group.kind == kind]

    def side(self, *, generated: bool) -> Group | None:
        """Return a whole side, or None when the folder has no such images."""
        return next((group for group in self.of("side") if group.generated == generated), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChanges:
    """Of images that were `generated` before a form: the shares that it calls otherwise."""

    real: RateWithInterval
    unsure: RateWithInterval


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A photograph labelled `generated`, or a generated image labelled `real`."""

    path: str
    set: str
    logit: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Everything that the report states."""

    bundle: str
    model_version: str
    seen_families: tuple[str, ...]
    flag_point: str
    doubt_point: str
    operating_points: tuple[OperatingPoint, ...]
    images: Mapping[str, int]
    families: Mapping[str, bool]
    limit: int | None
    snapshot_matches: bool
    warnings: tuple[str, ...]
    refused: Mapping[str, str]
    shortcut: Mapping[str, Probe]
    forms: Mapping[str, FormFigures]
    changes: Mapping[str, LabelChanges]
    accusations: tuple[Mistake, ...]
    misses: tuple[Mistake, ...]

    @property
    def published(self) -> list[OperatingPoint]:
        """The operating points that enough photographs support, strictest first."""
        return published(self.operating_points)

    def to_json(self) -> str:
        """Return the report as JSON."""
        points = [point.model_dump() for point in self.operating_points]
        return json.dumps(asdict(self) | {"operating_points": points}, indent=1)


def published(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Return the supported operating points, strictest first."""
    return sorted((point for point in points if point.supported), key=lambda point: point.target)
