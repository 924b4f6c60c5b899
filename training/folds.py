"""Leave-one-autoencoder-out folds: what the detector is worth on generators it never saw.

Each fold leaves out one autoencoder family and one source of photographs. Prompts recur across
generators, so a fold also keeps prompts apart: the families that it trains on are cut down to the
training side of the prompt split, and left-out images whose prompt was trained on are not tested.
Nothing is chosen on what a fold leaves out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.manifest import Entry, side

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Share of the prompt hash's range that the training families give up in a fold.
HELD_PROMPTS = 0.35


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
            and not (entry.generated and side(entry.group) < HELD_PROMPTS)
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
