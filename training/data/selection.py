"""Which images may train: a pure policy from what is known of them to a snapshot.

Nothing enters without consent (sources opt in) and proof: a person's decision, or a source that is
trusted for photographs. No source, uploader or moderator may weigh more than a cap, so that nobody
teaches the detector alone. Near-duplicates share a group and a group one side for ever.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from detection.score import Label
from training.data.splits import hash_fraction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

#: Two PDQ hashes this near (of 256 bits) are of one picture; its authors' recommended distance.
NEAR_BITS = 31
#: Hashes of flat pictures say nothing below this quality, by the same recommendation.
MIN_PDQ_QUALITY = 50


class Split(StrEnum):
    """What a snapshot uses an image for."""

    TRAINING = "training"
    CALIBRATION = "calibration"
    EVALUATION = "evaluation"


class LabelSource(StrEnum):
    """What lets an image in."""

    DECISION = "decision"
    TRUSTED_SOURCE = "trusted_source"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeratorDecision:
    """One decision of one moderator."""

    moderator: str
    label: Label
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of one image.

    `group` is its prompt or scene where known; `champion` the champion's probability that it is
    generated; `audit_share` the probability with which the random audit drew it, None if it did
    not.
    """

    image_id: str
    sha256: str
    source: str
    uploader: str | None
    rulings: tuple[ModeratorDecision, ...] = ()
    pdq: bytes | None = None
    pdq_quality: int = 0
    group: str | None = None
    champion: float | None = None
    audit_share: float | None = None
    withdrawn: bool = False
    under_appeal: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectPolicy:
    """Who may teach, and how much; without `sources` nobody may."""

    sources: frozenset[str] = frozenset()
    trusted_sources: frozenset[str] = frozenset()
    max_per_source: int = 2000
    max_per_uploader: int = 50
    max_per_moderator: int = 200
    max_near_duplicates: int = 3
    sure_generated: float = 0.9
    evaluation: float = 0.15
    calibration: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownGroup:
    """A picture whose group was named in an earlier snapshot, or that is a pinned report's."""

    pdq: bytes
    group: str
    split: Split | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """One image of a snapshot; `weight` says how many of its source's it stands for."""

    image_id: str
    sha256: str
    source: str
    label: Label
    why: LabelSource
    group: str
    split: Split
    weight: float


@dataclass(frozen=True, slots=True)
class Selection:
    """The images of a snapshot, and how many were left out by each reason."""

    items: tuple[Selected, ...]
    left_out: Mapping[str, int]

    def of(self, wanted: Split, label: Label) -> list[Selected]:
        """Return the images of one side and label."""
        return [item for item in self.items if item.split is wanted and item.label is label]


def select(
    candidates: Iterable[Candidate],
    policy: CollectPolicy,
    *,
    known: Sequence[KnownGroup] = (),
    known_sha256: Iterable[str] = (),
) -> Selection:
    """Choose the images of the next snapshot.

    `known` and `known_sha256` are those of earlier snapshots. The choice depends on the images and
    not on their order: where a cap leaves some out, a hash decides which.
    """
    left_out: Counter[str] = Counter()
    admitted: list[tuple[Candidate, Label, LabelSource]] = []
    # A hash of the id shuffles for ever the same way: neither early nor late uploads win.
    for candidate in sorted(candidates, key=lambda one: _rank(one.image_id)):
        label, why = _exclusion(candidate, policy)
        if label is None:
            left_out[why] += 1
        else:
            admitted.append((candidate, label, LabelSource(why)))
    groups = _Groups(known)
    caps = _Caps(policy, set(known_sha256))
    items = []
    for candidate, label, why in admitted:
        if groups.near_pinned(candidate):
            left_out["near_pinned_report"] += 1
            continue
        group = groups.find(candidate)
        reason = caps.refuse(candidate, label, why, group)
        where = groups.splits.get(group) or split_of(group, policy)
        if not reason and where is Split.CALIBRATION and not _fairly_sampled(candidate, label, why):
            # Reviewed photographs are mostly flagged ones: false-positive rates that rest on them
            # are wrong.
            reason = "not_sampled_for_calibration"
        if reason:
            left_out[reason] += 1
            continue
        caps.count(candidate, label, why, group)
        items.append(
            Selected(
                image_id=candidate.image_id,
                sha256=candidate.sha256,
                source=candidate.source,
                label=label,
                why=why,
                group=group,
                split=where,
                weight=_weight(candidate, why),
            )
        )
    return Selection(tuple(items), dict(left_out))


def revoked(
    taken: Iterable[tuple[Candidate, Label]], policy: CollectPolicy, known: Sequence[KnownGroup]
) -> set[str]:
    """Return the ids of images that may no longer teach what they were taken for.

    `taken` are images of earlier snapshots, as they are known now, with the label that each has
    there. What would be refused today, has another label by now, or is a version of a pinned
    report's picture teaches nothing more.
    """
    groups = _Groups(known)
    return {
        candidate.image_id
        for candidate, label in taken
        if _exclusion(candidate, policy)[0] is not label or groups.near_pinned(candidate)
    }


def _rank(image_id: str) -> bytes:
    return hashlib.sha256(f"collect:{image_id}".encode()).digest()


def _exclusion(candidate: Candidate, policy: CollectPolicy) -> tuple[Label | None, str]:
    """Return the label and what proves it, or None and why the image stays out."""
    for refused, reason in (
        (candidate.source not in policy.sources, "source_not_opted_in"),
        (candidate.withdrawn, "withdrawn"),
        (candidate.under_appeal, "under_appeal"),
        (candidate.pinned, "pinned_report"),
    ):
        if refused:
            return None, reason
    latest = {ruling.moderator: ruling.label for ruling in _by_time(candidate)}
    if not latest:
        if candidate.source in policy.trusted_sources:
            return Label.REAL, LabelSource.TRUSTED_SOURCE
        return None, "not_confirmed"
    label = _by_time(candidate)[-1].label
    if label is Label.UNSURE:
        return None, "moderator_unsure"
    # Whoever cleared a photograph of a trusted source found what the source vouches for. Were those
    # left out of calibration, the champion's false accusations would be what is missing there.
    vouched = label is Label.REAL and candidate.source in policy.trusted_sources
    sure = candidate.champion is not None and candidate.champion >= policy.sure_generated
    agreeing = sum(said is label for said in latest.values())
    if label is Label.REAL and sure and not vouched and agreeing < 2:
        return None, "needs_second_person"
    return label, LabelSource.TRUSTED_SOURCE if vouched else LabelSource.DECISION


def _by_time(candidate: Candidate) -> list[ModeratorDecision]:
    return sorted(candidate.rulings, key=lambda ruling: ruling.at)


def _fairly_sampled(candidate: Candidate, label: Label, why: LabelSource) -> bool:
    # No threshold rests on generated images, and the audit draws only those that were missed.
    if label is Label.GENERATED:
        return True
    return candidate.audit_share is not None or why is LabelSource.TRUSTED_SOURCE


def _weight(candidate: Candidate, why: LabelSource) -> float:
    # All photographs of a trusted source are taken, whatever the audit drew of them.
    if why is LabelSource.TRUSTED_SOURCE or not candidate.audit_share:
        return 1.0
    return 1 / candidate.audit_share


def split_of(group: str, policy: CollectPolicy) -> Split:
    """Return the side of a group: the same for ever, as long as the shares stay."""
    place = hash_fraction(group)
    if place < policy.evaluation:
        return Split.EVALUATION
    if place < policy.evaluation + policy.calibration:
        return Split.CALIBRATION
    return Split.TRAINING


class _Groups:
    """Names each image's group: what is known of it, else its near-duplicate cluster.

    A cluster keeps the name and the side of its first member for ever, whatever the shares are now;
    a new image joins the nearest.
    """

    def __init__(self, known: Sequence[KnownGroup]) -> None:
        self.splits = {one.group: one.split for one in known if one.split is not None}
        self._names = [one.group for one in known if not one.pinned]
        self._bits = [_bits(one.pdq) for one in known if not one.pinned]
        self._pinned = np.array([_bits(one.pdq) for one in known if one.pinned])

    def find(self, candidate: Candidate) -> str:
        """Return the group."""
        bits = _meaningful(candidate)
        if bits is None:
            return candidate.group or f"image:{candidate.sha256}"
        if self._bits:
            distances = _distances(np.stack(self._bits), bits)
            nearest = int(distances.argmin())
            if distances[nearest] <= NEAR_BITS:
                return self._names[nearest]
        name = candidate.group or f"picture:{candidate.sha256}"
        self._names.append(name)
        self._bits.append(bits)
        return name

    def near_pinned(self, candidate: Candidate) -> bool:
        """Whether the picture is a version of a pinned report's."""
        bits = _meaningful(candidate)
        if bits is None or not len(self._pinned):
            return False
        return bool(_distances(self._pinned, bits).min() <= NEAR_BITS)


def _meaningful(candidate: Candidate) -> NDArray[np.uint8] | None:
    """Return the bits of a picture's hash, or None where it says nothing."""
    if candidate.pdq is None or candidate.pdq_quality < MIN_PDQ_QUALITY:
        return None
    return _bits(candidate.pdq)


def _bits(pdq: bytes) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(pdq, dtype=np.uint8))


def _distances(hashes: NDArray[np.uint8], bits: NDArray[np.uint8]) -> NDArray[np.int_]:
    found: NDArray[np.int_] = (hashes != bits).sum(axis=1)
    return found


class _Caps:
    """Counts what was taken and refuses what would be too much."""

    def __init__(self, policy: CollectPolicy, known_sha256: set[str]) -> None:
        self._policy = policy
        self._bytes = known_sha256
        self._taken: Counter[tuple[str, str]] = Counter()

    def refuse(self, candidate: Candidate, label: Label, why: LabelSource, group: str) -> str:
        """Return why the image is one too many, or nothing."""
        if candidate.sha256 in self._bytes:
            return "exact_duplicate"
        for kind, name, limit in self._limits(candidate, label, why, group):
            if self._taken[kind, name] >= limit:
                return f"{kind}_cap"
        return ""

    def count(self, candidate: Candidate, label: Label, why: LabelSource, group: str) -> None:
        """Take the image."""
        self._bytes.add(candidate.sha256)
        for kind, name, _ in self._limits(candidate, label, why, group):
            self._taken[kind, name] += 1

    def _limits(
        self, candidate: Candidate, label: Label, why: LabelSource, group: str
    ) -> Iterator[tuple[str, str, int]]:
        policy = self._policy
        yield "source", candidate.source, policy.max_per_source
        if candidate.uploader is not None:
            yield "uploader", f"{candidate.source}/{candidate.uploader}", policy.max_per_uploader
        # Whoever stands for the label: a second person's vote spends their share too. For what a
        # trusted source vouches for nobody else does, however many of it they had to clear.
        if why is LabelSource.DECISION:
            for moderator in sorted({r.moderator for r in candidate.rulings if r.label is label}):
                yield "moderator", moderator, policy.max_per_moderator
        yield "near_duplicate", f"{label}/{group}", policy.max_near_duplicates
