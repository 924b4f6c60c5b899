"""Folds that leave out whole autoencoder families and whole sources of pictures at once.

They say what a detector is worth on generators and cameras that it never saw. `folds.tsv` beside
the manifest states them (columns `fold`, `families`, `sources`, the latter two comma-separated);
without that file each family is paired with one source.

Prompts recur across generators, so a fold also keeps them apart: of the families that it trains on
it gives up every image whose group is tested. Where that would empty a family, only a share of the
prompts is held back and tested (`HELD_PROMPTS`, chosen by group hash). Nothing is chosen on what a
fold leaves out.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.errors import SettingsError
from training.data.splits import hash_fraction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from training.data.manifest import Entry

FOLDS_FILE = "folds.tsv"
#: Share of the prompts that are tested where testing all would leave a family without training.
HELD_PROMPTS = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What one fold leaves out: autoencoder families, and sources of real pictures."""

    name: str
    families: frozenset[str]
    sources: frozenset[str]

    def left_out(self, entry: Entry) -> bool:
        """Whether an image is of a family or a source that this fold leaves out."""
        return entry.family in self.families if entry.generated else entry.source in self.sources

    def divide(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Return the entries that the fold trains on and those that it is tested on."""
        tested = [entry for entry in entries if self.left_out(entry)]
        rest = [entry for entry in entries if not self.left_out(entry)]
        training = _apart(rest, _prompts(tested))
        if _families(training) != _families(rest):
            shared = _prompts(tested) & _prompts(rest)
            tested = [
                entry
                for entry in tested
                if entry.group not in shared or hash_fraction(entry.group) < HELD_PROMPTS
            ]
            training = _apart(rest, _prompts(tested))
        return training, tested


def load_folds(folder: Path, entries: Sequence[Entry]) -> list[Fold]:
    """Read `folder/folds.tsv`, or make folds of the entries where there is no such file.

    Raises `SettingsError` when a column is missing or a fold leaves out nothing.
    """
    file = folder / FOLDS_FILE
    if not file.is_file():
        return make_folds(entries)
    with file.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    if not rows or (missing := {"fold", "families", "sources"} - rows[0].keys()):
        lacking = ", ".join(sorted(missing)) if rows else "every row"
        raise SettingsError(f"{file} lacks {lacking}: expected columns fold, families, sources")
    folds = [
        Fold(
            name=row["fold"],
            families=frozenset(row["families"].split(",")),
            sources=frozenset(row["sources"].split(",")),
        )
        for row in rows
    ]
    for fold in folds:
        sides = {entry.generated for entry in entries if fold.left_out(entry)}
        if sides != {True, False}:
            raise SettingsError(
                f"{file}: the fold {fold.name} must leave out images of both classes,"
                " but the manifest has none of its families or none of its sources"
            )
    return folds


def folds_digest(folder: Path) -> str:
    """Digest of `folder/folds.tsv`; "None" where folds are made of the entries."""
    file = folder / FOLDS_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "None"


def make_folds(entries: Iterable[Entry]) -> list[Fold]:
    """Pair the families, smallest first, with the sources of photographs, largest first.

    A fold that gives up few generated images then gives up many photographs, and the other way
    round, so that no fold is left with too little of both.
    """
    listed = list(entries)
    families = Counter(entry.family for entry in listed if entry.generated)
    sources = Counter(entry.source for entry in listed if not entry.generated)
    smallest = sorted(families, key=lambda name: (families[name], name))
    largest = sorted(sources, key=lambda name: (-sources[name], name))
    return [
        Fold(
            name=f"without-{family}-{source}".replace("/", "-"),
            families=frozenset([family]),
            sources=frozenset([source]),
        )
        for family, source in zip(smallest, largest, strict=False)
    ]


def _apart(entries: Iterable[Entry], prompts: set[str]) -> list[Entry]:
    return [entry for entry in entries if not (entry.generated and entry.group in prompts)]


def _prompts(entries: Iterable[Entry]) -> set[str]:
    return {entry.group for entry in entries if entry.generated}


def _families(entries: Iterable[Entry]) -> set[str]:
    return {entry.family for entry in entries if entry.generated}
