"""One protocol for the shipped detector and its peers: the folds of a data set, and one table.

A peer that is fitted learns from a fold's training side alone, as the shipped recipe does, and is
tested on the families and sources that the fold leaves out, against photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks.detector.peer_formulas import declared
from training.bundles.cross_fit import unseen_auc
from training.bundles.head_branch import HeadBranch
from training.evaluation.scoring import RAW
from training.fit.softmax_head import SoftmaxHead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.folds import Fold
    from training.data.manifest import Entry

#: As uploaded, and as the web serves it (at most 768 pixels, JPEG 60).
FORMS = (RAW, "web")


class OwnDirection(HeadBranch):
    """A peer whose one number is higher for generated images: nothing is fitted."""

    def head(self, entries: Sequence[Entry]) -> SoftmaxHead:  # noqa: ARG002  # learns from none
        """Return the head whose log-odds are the number itself."""
        return SoftmaxHead(("real",), ("generated",), np.array([[0.0], [1.0]]), np.zeros(2))


class DeclaredRows:
    """The rule on metadata: it judges files as uploaded, and the web's copies hold none."""

    @staticmethod
    def rows(entries: Sequence[Entry], form: str) -> NDArray[np.float32]:
        """Return what N files declare (N, 1)."""
        if form != RAW:
            return np.zeros((len(entries), 1), dtype=np.float32)
        found = [[declared(entry.path.read_bytes())] for entry in entries]
        return np.array(found, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A row of the table: the branch that is measured, in words, and its cost an image."""

    title: str
    learnt: str
    branch: HeadBranch
    processor_ms: float


def measure(peer: Peer, entries: Sequence[Entry], folds: Sequence[Fold]) -> dict[str, Any]:
    """State the AUC of each fold and their mean, by form."""
    forms: dict[str, Any] = {}
    for form, areas in unseen_auc(peer.branch, entries, folds, FORMS).items():
        named = {fold.name: area for fold, area in zip(folds, areas, strict=True)}
        forms[form] = {"mean": mean_area(areas), "folds": named}
    return {
        "title": peer.title,
        "learnt": peer.learnt,
        "processor_ms": round(peer.processor_ms, 1),
        "forms": forms,
    }


def mean_area(areas: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the folds' areas; the 95 % interval is that of a mean of independent figures.

    Each side of it is the root of the sum of the folds' squared half intervals, over their number.
    """
    count = len(areas)
    value = sum(area["value"] for area in areas) / count
    below, above = (
        float(np.sqrt(sum((area[side] - area["value"]) ** 2 for area in areas))) / count
        for side in ("low", "high")
    )
    return {
        "value": round(value, 4),
        "low": round(value - below, 4),
        "high": round(value + above, 4),
    }


def write_page(rows: Sequence[Mapping[str, Any]], file: Path, *, command: str, data: str) -> None:
    """Write the table with what it was measured by and on."""
    lines = [
        "# The shipped detector and its peers, on the same pictures",
        "",
        f"Written by `{command}` on {data}.",
        "AUC against photographs, the mean of the folds, which each leave out whole families of",
        "generators and whole sources of pictures; 95 % intervals by a bootstrap of prompts and",
        "scenes in each fold. What is fitted learns from the training sides of these pictures; the",
        "shipped bundle itself was trained on all of them, which flatters its row. The web's",
        "copies are at most 768 pixels and JPEG 60, and hold no metadata. Processor time is one",
        "thread's, for a picture of 512 x 512 pixels.",
        "",
        "| detector | learnt from | ms an image | AUC as uploaded | AUC as the web serves it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [row["title"], row["learnt"], f"{row['processor_ms']:.1f}"]
        cells += [_shown(row["forms"][form]["mean"]) for form in FORMS]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The figures of every fold are in `peers.json`."]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _shown(area: Mapping[str, float]) -> str:
    return f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"
