"""Splits of labelled images into training and calibration: by group and source."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from training.data.manifest import Entry

#: Share of the groups that calibrate and are not trained on.
VALIDATION = 0.15
#: Share of the photographs that come from sources held back as a whole for calibration.
CALIBRATION_SOURCES = 0.3


def hash_fraction(group: str, *, salt: str = "split-1") -> float:
    """Place a group on [0, 1) by its hash: the same for ever, whatever else is in the data."""
    digest = hashlib.sha256(f"{salt}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(entries: Iterable[Entry], *, validation: float) -> tuple[list[Entry], list[Entry]]:
    """Split by group hash into training and validation entries."""
    training: list[Entry] = []
    held: list[Entry] = []
    for entry in entries:
        (held if hash_fraction(entry.group) < validation else training).append(entry)
    return training, held


def divide(
    entries: Sequence[Entry],
    *,
    validation: float = VALIDATION,
    calibration_sources: float = CALIBRATION_SOURCES,
) -> tuple[list[Entry], list[Entry]]:
    """Divide entries into those trained on and those that calibrate.

    Calibration gets the validation side of the group split and, so that thresholds rest on
    photographs from sources that no branch has met, whole sources: the smallest, as long as they
    hold at most a share `calibration_sources` of the photographs.
    """
    sizes = Counter(entry.set for entry in entries if not entry.generated)
    room = calibration_sources * sizes.total()
    held: set[str] = set()
    for source in sorted(sizes, key=lambda name: (sizes[name], name)):
        room -= sizes[source]
        if room < 0:
            break
        held.add(source)
    rest = [entry for entry in entries if entry.generated or entry.set not in held]
    training, calibration = split(rest, validation=validation)
    whole = [entry for entry in entries if not entry.generated and entry.set in held]
    return training, calibration + whole
