"""What came of the uploads: rows, the table, the summary in words, and `demo.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from detection.score import Label, describe_distance
from training.evaluation.calibration import clopper_pearson
from worker.demo.uploads import DemoUpload, Kind
from worker.ledger.interface import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from detection.bundle import BundleManifest

COLOURS = {Label.REAL: "green", Label.GENERATED: "red", Label.UNSURE: "yellow"}
#: Longest name a table shows; the end of a path says more than its beginning.
SHOWN = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One upload as the ledger has it at the end."""

    upload: DemoUpload
    state: State
    reason: str | None
    detail: str | None
    score: float | None
    label: Label | None
    distance: float | None
    outside: str | None
    model_version: str | None

    @property
    def verdict(self) -> str:
        """What the detector says and how far from the point of accusation, or why it says none."""
        if self.label is None:
            return self.reason or ""
        return describe_distance(self.label, self.distance, self.outside)

    @property
    def as_expected(self) -> bool:
        """Whether the upload ended as it must; one's own pictures may end in any state."""
        if self.upload.kind is Kind.OWN:
            return self.state != State.PENDING
        wanted = State.SCORED if self.upload.reason is None else State.FAILED
        return (self.state, self.reason) == (wanted, self.upload.reason)


def table(rows: Sequence[Row]) -> Table:
    """Lay the rows out for a terminal."""
    laid = Table(box=None, pad_edge=False)
    laid.add_column("file", overflow="ellipsis", no_wrap=True)
    laid.add_column("what it is", overflow="ellipsis", no_wrap=True, ratio=1)
    laid.add_column("state")
    laid.add_column("verdict", no_wrap=True, min_width=12)
    laid.add_column("score", justify="right")
    kind = None
    for row in rows:
        if kind not in {None, row.upload.kind}:
            laid.add_section()
        kind = row.upload.kind
        colour = "grey50" if row.label is None else COLOURS[row.label]
        laid.add_row(
            escape(name(row.upload)),
            row.upload.says or row.upload.kind.value,
            row.state,
            f"[{colour}]{row.verdict}[/]",
            "" if row.score is None else f"{row.score:.3f}",
        )
    return laid


def name(upload: DemoUpload) -> str:
    """Name a file shortly, printable whatever its bytes are; one's own by the end of its path."""
    path = upload.path if upload.kind is Kind.OWN else upload.path.name
    text = str(path).encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN else f"…{text[1 - SHOWN :]}"


def summary(rows: Sequence[Row], manifest: BundleManifest) -> list[str]:
    """Say what the numbers mean and what they do not."""
    says: dict[Kind, Callable[[Counter[Label | None]], str]] = {
        Kind.PHOTOGRAPH: _of_photographs,
        Kind.RECONSTRUCTION: partial(_of_remade, "sent through the bundle's small autoencoder"),
        Kind.VARIANT: partial(_of_remade, "noised and denoised by the bundle's small generator"),
        Kind.OWN: _of_own,
    }
    lines = []
    for kind, say in says.items():
        labels = [row.label for row in rows if row.upload.kind is kind]
        if labels:
            lines.append(say(Counter(labels)))
    remade = any(row.upload.kind in {Kind.RECONSTRUCTION, Kind.VARIANT} for row in rows)
    if remade and manifest.egre is None and manifest.aligned is None:
        lines.append(
            "That small generator makes pairs for retraining; the bundle's score was not learnt"
            " from it and does not look for it."
        )
    return [*lines, _of_scores(manifest), *(_surprise(row) for row in rows if not row.as_expected)]


def _of_photographs(labels: Counter[Label | None]) -> str:
    accused, total = labels[Label.GENERATED], labels.total()
    low, high = clopper_pearson(accused, total)
    return (
        f"False accusations: {accused} of {total} photographs labelled generated,"
        f" {labels[Label.UNSURE]} unsure. So few photographs fit any true rate from {low:.1%} to"
        f" {high:.0%} (95% interval), and some of them (telescope, microscope, retina, textures)"
        " are unlike what people upload."
    )


def _of_remade(what: str, labels: Counter[Label | None]) -> str:
    return (
        f"{labels.total()} photographs {what}: {labels[Label.GENERATED]} labelled generated,"
        f" {labels[Label.UNSURE]} unsure, {labels[Label.REAL]} real."
    )


def _of_own(labels: Counter[Label | None]) -> str:
    return (
        f"Of {labels.total()} pictures {labels[Label.GENERATED]} were labelled generated,"
        f" {labels[Label.UNSURE]} unsure, {labels[Label.REAL]} real; {labels[None]} have no"
        " verdict. A label is evidence, not proof."
    )


def _of_scores(manifest: BundleManifest) -> str:
    policy = manifest.policy
    return (
        "The number beside a label is the distance, in log-odds, from the point of accusation, from"
        " which on the label is generated: 0 is at it, above 0 beyond it. Score: probability of"
        f" generated if {policy.prior:.0%} of all images are. Label: generated"
        f" from the score on that {policy.flag:.1%} of unseen photographs reach, unsure from the"
        f" one that {policy.doubt:.1%} reach; both were set before, on other photographs."
    )


def _surprise(row: Row) -> str:
    return f"Not as expected: {name(row.upload)} is {row.state} ({row.reason}: {row.detail})"


def write_json(file: Path, rows: Sequence[Row], **facts: object) -> None:
    """Write the rows and `facts` about the run as one JSON object."""
    listed = [
        {
            "path": str(row.upload.path),
            "kind": row.upload.kind.value,
            "state": row.state,
            "score": row.score,
            "label": row.label,
            "distance": row.distance,
            "reason": row.reason,
            "detail": row.detail,
            "model_version": row.model_version,
            "as_expected": row.as_expected,
        }
        for row in rows
    ]
    file.write_text(json.dumps({**facts, "rows": listed}, indent=1) + "\n", encoding="utf-8")
