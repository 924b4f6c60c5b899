"""Splits of labelled images into training, calibration and test: by group, source or family.

Leave-one-autoencoder-out folds say what the detector is worth on generators it never saw. Each fold
leaves out one autoencoder family and one source of photographs. Prompts recur across generators, so
a fold also keeps prompts apart: the families that it trains on are cut down to the training side of
the prompt split, and left-out images whose prompt was trained on are not tested. Nothing is chosen
on what a fold leaves out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from training.data.manifest import Entry

#: Share of the prompt hash's range that the training families give up in a fold.
HELD_PROMPTS = 0.35
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One autoencoder family and one source of photographs to leave out."""

    family: str
    source: str

    @property
    def name(self) -> str:
        """How runs and reports name the fold."""
        return f"without-{self.family}-{self.source}"

    def left_out(self, entry: Entry) -> bool:
        """Whether an image is of the family or the source that this fold leaves out."""
        return entry.family == self.family if entry.generated else entry.set == self.source

    def divide(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Return the entries that the fold trains on and those that it is tested on."""
        training = [
            entry
            for entry in entries
            if not self.left_out(entry)
            and not (entry.generated and hash_fraction(entry.group) < HELD_PROMPTS)
        ]
        known = {entry.group for entry in training}
        tested = [entry for entry in entries if self.left_out(entry) and entry.group not in known]
        return training, tested


def make_folds(entries: Sequence[Entry]) -> list[Fold]:
    """Pair the families, smallest first, with the sources, largest first.

    A fold that gives up few generated images then gives up many photographs, and the other way
    round, so that no fold is left with too little of both.
    """
    families = Counter(entry.family for entry in entries if entry.generated)
    sources = Counter(entry.set for entry in entries if not entry.generated)
    smallest = sorted(families, key=lambda name: (families[name], name))
    largest = sorted(sources, key=lambda name: (-sources[name], name))
    return [
        Fold(family=family, source=source)
        for family, source in zip(smallest, largest, strict=False)
    ]
