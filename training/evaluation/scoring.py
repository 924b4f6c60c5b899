"""Scoring labelled images under the robustness tiers, and the figures that reports state.

Codecs are harmonised first: whatever is not already a generator's JPEG is saved the way most
generated files are, so that no figure rests on who used which codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.data.samples import GENERATOR_CODEC, read_pixels
from training.evaluation.calibration import Logits
from training.evaluation.robustness_tiers import TIERS
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from detection.detector import Detector
    from training.data.manifest import Entry

BATCH = 16
BOOTSTRAPS = 1000
#: The form in which an image is scored as it was uploaded; the other forms are the tiers.
RAW = "raw"
#: The tiers that calibration images are scored in, beside that form.
CALIBRATION_TIERS = ("clean", "web")


@dataclass(frozen=True, slots=True)
class Scored:
    """N scored images of one tier: their entries and branch logits."""

    entries: tuple[Entry, ...]
    logits: Logits
    tier: str

    def of(self, keep: NDArray[np.bool_]) -> Scored:
        """Return the images selected by a mask (N,)."""
        branches = {name: values[keep] for name, values in self.logits.branches.items()}
        entries = tuple(entry for entry, kept in zip(self.entries, keep, strict=True) if kept)
        return Scored(entries, Logits(branches, self.logits.generated[keep]), self.tier)

    @property
    def sets(self) -> NDArray[np.str_]:
        """Name of each image's set (N,)."""
        return np.array([entry.set for entry in self.entries])


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval and the numbers of images behind it."""

    value: float
    low: float
    high: float
    reals: int
    generated: int


def harmonised(entry: Entry) -> NDArray[np.uint8]:
    """Decode an entry and, unless it is a generator's JPEG, save it once as one."""
    pixels, kind = read_pixels(entry)
    if entry.generated and kind == "JPEG":
        return pixels
    return GENERATOR_CODEC.apply(pixels)


def untouched(entry: Entry) -> NDArray[np.uint8]:
    """Decode an entry as it was uploaded."""
    return read_pixels(entry)[0]


def score_tier(
    detector: Detector,
    entries: Sequence[Entry],
    tier: str,
    *,
    read: Callable[[Entry], NDArray[np.uint8]] = harmonised,
    on_image: Callable[[int], None] | None = None,
) -> Scored:
    """Score entries under one tier; `on_image` hears how many are done."""
    rows: list[dict[str, float]] = []
    for start in range(0, len(entries), BATCH):
        images = [TIERS[tier](read(entry)) for entry in entries[start : start + BATCH]]
        rows += [dict(score.branches) for score in retry_in_halves(detector.score, images)]
        if on_image is not None:
            on_image(len(rows))
    branches = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    generated = np.array([entry.generated for entry in entries])
    return Scored(tuple(entries), Logits(branches, generated), tier)


def merge(parts: Sequence[Scored]) -> Scored:
    """Join scored images of one tier."""
    branches = {
        name: np.concatenate([part.logits.branches[name] for part in parts])
        for name in parts[0].logits.branches
    }
    generated = np.concatenate([part.logits.generated for part in parts])
    entries = tuple(entry for part in parts for entry in part.entries)
    return Scored(entries, Logits(branches, generated), parts[0].tier)


def auc(
    values: NDArray[np.float64],
    generated: NDArray[np.bool_],
    *,
    groups: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> Interval:
    """Area under the ROC curve with a stratified bootstrap interval.

    Where images share a prompt or a scene, `groups` (N,) are drawn whole (Field and Welsh, J. R.
    Stat. Soc. B 69, 2007): images of one group are hardly more evidence than one of them.
    """
    return _mean_win(_wins(values, generated), seed, _group_numbers(generated, groups))


def auc_gain(
    values: NDArray[np.float64],
    others: NDArray[np.float64],
    generated: NDArray[np.bool_],
    *,
    groups: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> Interval:
    """What `values` gain in AUC over `others`, with a stratified bootstrap interval.

    The bootstrap is paired: both are taken on the same drawn images. `groups` as in `auc`.
    """
    wins = _wins(values, generated) - _wins(others, generated)
    return _mean_win(wins, seed, _group_numbers(generated, groups))


def recall_at(
    values: NDArray[np.float64],
    generated: NDArray[np.bool_],
    rate: float,
    *,
    groups: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> Interval:
    """Recall at a false-positive rate on these very images, with a stratified bootstrap interval.

    For reports of separability only: no threshold found here is ever served. `groups` as in `auc`.
    """

    def figure(reals: NDArray[np.float64], fakes: NDArray[np.float64]) -> float:
        return float((fakes > np.quantile(reals, 1 - rate, method="higher")).mean())

    return _bootstrapped(values, generated, figure, seed, _group_numbers(generated, groups))


def _wins(values: NDArray[np.float64], generated: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Whether generated image g outscores photograph r, a tie counting half: (G, R).

    The mean is the area under the ROC curve (Mann and Whitney, Ann. Math. Stat. 1947).
    """
    fakes, reals = values[generated][:, None], values[~generated][None]
    return np.heaviside(fakes - reals, 0.5).astype(np.float32)


def _group_numbers(
    generated: NDArray[np.bool_], groups: NDArray[np.str_] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number the groups of the generated and of the real images: (G,) and (R,).

    Without `groups` every image is one.
    """
    if groups is None:
        return np.arange(int(generated.sum())), np.arange(int((~generated).sum()))
    fakes, reals = (
        np.unique(groups[side], return_inverse=True)[1] for side in (generated, ~generated)
    )
    return fakes, reals


def _mean_win(
    wins: NDArray[np.float32], seed: int, numbers: tuple[NDArray[np.intp], NDArray[np.intp]]
) -> Interval:
    fakes, reals = wins.shape
    rng = np.random.default_rng(seed)
    drawn_fakes, drawn_reals = (draw_groups(of_side, rng) for of_side in numbers)
    draws = ((drawn_fakes @ wins) * drawn_reals).sum(axis=1, dtype=np.float64)
    draws /= drawn_fakes.sum(axis=1, dtype=np.float64) * drawn_reals.sum(axis=1, dtype=np.float64)
    low, high = np.quantile(draws, [0.025, 0.975])
    mean = float(wins.mean(dtype=np.float64))
    return Interval(mean, float(low), float(high), reals, fakes)


def draw_groups(
    numbers: NDArray[np.intp], rng: np.random.Generator, bootstraps: int = BOOTSTRAPS
) -> NDArray[np.float32]:
    """How often each bootstrap draws each image, given its group's number: (bootstraps, N)."""
    groups = int(numbers.max()) + 1
    picked = rng.integers(groups, size=(bootstraps, groups))
    picked += np.arange(bootstraps)[:, None] * groups
    counts = np.bincount(picked.ravel(), minlength=bootstraps * groups)
    return counts.reshape(bootstraps, groups)[:, numbers].astype(np.float32)


def _bootstrapped(
    values: NDArray[np.float64],
    generated: NDArray[np.bool_],
    figure: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    seed: int,
    numbers: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> Interval:
    reals, fakes = values[~generated], values[generated]
    rng = np.random.default_rng(seed)
    of_fakes, of_reals = (draw_groups(of_side, rng).astype(int) for of_side in numbers)
    draws = [
        figure(np.repeat(reals, drawn_reals), np.repeat(fakes, drawn_fakes))
        for drawn_reals, drawn_fakes in zip(of_reals, of_fakes, strict=True)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(figure(reals, fakes), float(low), float(high), len(reals), len(fakes))
