"""The images of a folder that a benchmark of detectors reads, and their folds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detection.bundle import sha256_of
from training.data.folds import load_folds
from training.data.manifest import load_manifest
from training.evaluation.quality.run import limit_per_set

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.data.folds import Fold
    from training.data.manifest import Entry


def load_limited(data: Path, limit: int | None) -> tuple[list[Entry], Sequence[Fold]]:
    """Read a manifest, keep at most `limit` images of each set, and divide them by its folds."""
    everything = load_manifest(data)
    digests = {entry.path: sha256_of(entry.path) for entry in everything}
    entries = limit_per_set(everything, digests, limit)
    return entries, load_folds(data, entries)
