"""Which images may train, and who may teach how much."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from detection.score import Label
from training.data.selection import (
    Candidate,
    CollectPolicy,
    KnownGroup,
    LabelSource,
    ModeratorDecision,
    Selection,
    Split,
    revoked,
    select,
)

DAY = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = CollectPolicy(sources=frozenset({"web", "studio"}), trusted_sources=frozenset({"studio"}))


def ruling(label: Label, moderator: str = "mia", hour: int = 0) -> ModeratorDecision:
    """A decision of one moderator at one hour."""
    return ModeratorDecision(moderator=moderator, label=label, at=DAY + timedelta(hours=hour))


def candidate(number: int, *rulings: ModeratorDecision, **changes: Any) -> Candidate:
    """An image of its own picture, bytes and uploader, unless said otherwise."""
    digest = hashlib.sha256(str(number).encode()).digest()
    plain = Candidate(
        image_id=f"image-{number}",
        sha256=digest.hex(),
        source="web",
        uploader=f"user-{number}",
        rulings=rulings,
        pdq=digest,
        pdq_quality=100,
    )
    return replace(plain, **changes)


def near(number: int, of: int, bits: int, **changes: Any) -> Candidate:
    """Another image whose picture lies `bits` bits from that of image `of`."""
    flipped = np.unpackbits(np.frombuffer(hashlib.sha256(str(of).encode()).digest(), np.uint8))
    flipped[:bits] ^= 1
    return candidate(number, ruling(Label.REAL), pdq=np.packbits(flipped).tobytes(), **changes)


def one(selection: Selection) -> dict[str, Label]:
    """Labels by image."""
    return {item.image_id: item.label for item in selection.items}


REAL = ruling(Label.REAL)
ELSEWHERE = replace(POLICY, evaluation=0.0, calibration=0.0)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (candidate(1, REAL, source="other"), "source_not_opted_in"),
        (candidate(1), "not_confirmed"),
        (candidate(1, ruling(Label.UNSURE)), "moderator_unsure"),
        (candidate(1, REAL, withdrawn=True), "withdrawn"),
        (candidate(1, REAL, under_appeal=True), "under_appeal"),
        (candidate(1, REAL, pinned=True), "pinned_report"),
        (candidate(1, REAL, champion=0.97), "needs_second_person"),
        (
            candidate(1, REAL, ruling(Label.REAL, hour=5), champion=0.97),
            "needs_second_person",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_not_train_stays_out(image: Candidate, reason: str) -> None:
    """Each ground keeps the image out and is counted by its name."""
    selection = select([image], POLICY)

    assert selection.items == ()
    assert selection.left_out == {reason: 1}


def test_nobody_teaches_by_default() -> None:
    """Without an opted-in source a confirmed image stays out."""
    assert select([candidate(1, REAL)], CollectPolicy()).items == ()


def test_confirmed_images_enter() -> None:
    """Decisions and trusted sources let images in, each with what proves it."""
    selection = select(
        [
            candidate(1, REAL),
            candidate(2, ruling(Label.GENERATED)),
            candidate(3, source="studio"),
            candidate(4, ruling(Label.GENERATED), source="studio"),
            candidate(5, REAL, ruling(Label.REAL, "noa"), champion=0.99),
            candidate(6, ruling(Label.GENERATED), ruling(Label.REAL, "noa", hour=2)),
        ],
        ELSEWHERE,
    )

    assert one(selection) == {
        "image-1": Label.REAL,
        "image-2": Label.GENERATED,
        "image-3": Label.REAL,
        "image-4": Label.GENERATED,
        "image-5": Label.REAL,
        "image-6": Label.REAL,
    }
    why = {item.image_id: item.why for item in selection.items}
    assert why["image-3"] is LabelSource.TRUSTED_SOURCE
    assert why["image-4"] is LabelSource.DECISION


@pytest.mark.parametrize(
    ("changes", "shared", "reason"),
    [
        ({"max_per_source": 4}, {}, "source_cap"),
        ({"max_per_uploader": 4}, {"uploader": "busy"}, "uploader_cap"),
        ({"max_per_moderator": 4}, {}, "moderator_cap"),
    ],
)
def test_nobody_teaches_more_than_a_share(
    changes: dict[str, int], shared: dict[str, str], reason: str
) -> None:
    """A source, an uploader and a moderator each have a cap, whatever the order of images."""
    images = [candidate(number, REAL, **shared) for number in range(10)]
    policy = replace(ELSEWHERE, **changes)
    selection = select(images, policy)

    assert len(selection.items) == 4
    assert selection.left_out == {reason: 6}
    assert select(reversed(images), policy) == selection


def test_what_a_trusted_source_vouches_for_spends_no_share() -> None:
    """However many of its photographs one moderator had to clear, none is missing."""
    images = [candidate(number, REAL, source="studio") for number in range(5)]
    assert len(select(images, replace(ELSEWHERE, max_per_moderator=2)).items) == 5


def test_the_same_bytes_enter_once() -> None:
    """Exact duplicates are taken once, and never again after an earlier snapshot."""
    first, twin = candidate(1, REAL), candidate(1, REAL, image_id="twin")
    assert len(select([first, twin], ELSEWHERE).items) == 1

    again = select([first], ELSEWHERE, known_sha256=[first.sha256])
    assert again.left_out == {"exact_duplicate": 1}


def test_near_duplicates_are_capped_and_share_a_group() -> None:
    """At most three versions of a picture enter, all on one side; a bit further is another."""
    versions = [near(100 + step, 1, step) for step in range(1, 9)]
    far = near(200, 1, 80)
    selection = select([*versions, far], ELSEWHERE)

    groups = [item.group for item in selection.items if item.image_id != "image-200"]
    assert len(groups) == 3
    assert len(set(groups)) == 1
    assert selection.left_out == {"near_duplicate_cap": 5}
    assert {item.group for item in selection.items if item.image_id == "image-200"} != set(groups)


def test_a_group_keeps_its_side_for_ever() -> None:
    """A near-duplicate of an earlier snapshot's picture joins its group, and so its side."""
    policy = replace(POLICY, calibration=0.0, evaluation=0.5)
    sides = {}
    for number in range(40):
        (first,) = select([candidate(number, REAL)], policy).items
        known = KnownGroup(pdq=candidate(number).pdq or b"", group=first.group)
        (later,) = select([near(1000 + number, number, 5)], policy, known=[known]).items
        assert (later.group, later.split) == (first.group, first.split)
        # Whoever changes the shares later moves no group that has a side.
        known = replace(known, split=first.split)
        (moved,) = select([near(1000 + number, number, 5)], ELSEWHERE, known=[known]).items
        assert (moved.group, moved.split) == (first.group, first.split)
        sides[number] = first.split
    assert set(sides.values()) == {Split.TRAINING, Split.EVALUATION}


def test_near_a_pinned_report_stays_out() -> None:
    """A version of a pinned report's picture never trains."""
    pinned = KnownGroup(pdq=candidate(1).pdq or b"", group="report", pinned=True)
    selection = select([near(2, 1, 10)], ELSEWHERE, known=[pinned])

    assert selection.left_out == {"near_pinned_report": 1}


@pytest.mark.parametrize(
    ("image", "changes"),
    [
        (candidate(1, REAL, withdrawn=True), {}),
        (candidate(1, REAL, under_appeal=True), {}),
        (candidate(1, REAL, pinned=True), {}),
        (candidate(1, REAL, ruling(Label.GENERATED, "noa", hour=2)), {}),
        (candidate(1, REAL, ruling(Label.UNSURE, hour=2)), {}),
        (candidate(1, REAL), {"sources": frozenset({"studio"})}),
        (candidate(1, source="studio"), {"trusted_sources": frozenset()}),
        (near(1, 2, 10), {}),
    ],
)
def test_what_would_be_refused_today_is_revoked(
    image: Candidate, changes: dict[str, frozenset[str]]
) -> None:
    """What was taken as a photograph teaches on only while it would still be taken as one."""
    steady = candidate(3, REAL, source="studio")
    pinned = KnownGroup(pdq=candidate(2).pdq or b"", group="report", pinned=True)
    taken = [(image, Label.REAL), (steady, Label.REAL)]

    assert revoked(taken, replace(POLICY, **changes), [pinned]) == {"image-1"}


def test_calibration_takes_fair_samples_only() -> None:
    """Calibration takes photographs that were audited or trusted, and any confirmed fake."""
    policy = replace(POLICY, evaluation=0.0, calibration=1.0)
    selection = select(
        [
            candidate(1, REAL),
            candidate(2, REAL, audit_share=0.005),
            candidate(3, source="studio"),
            candidate(4, ruling(Label.GENERATED)),
            candidate(5, source="studio", audit_share=0.005),
            candidate(6, ruling(Label.GENERATED), audit_share=0.1),
        ],
        policy,
    )

    assert {item.image_id: item.weight for item in selection.items} == {
        "image-2": 200.0,
        "image-3": 1.0,
        "image-4": 1.0,
        "image-5": 1.0,  # the source's photographs are all there, drawn or not
        "image-6": 10.0,
    }
    assert selection.left_out == {"not_sampled_for_calibration": 1}


def test_a_false_accusation_in_a_trusted_source_stays_in_calibration() -> None:
    """A trusted photograph that the champion is sure of, and one person cleared, is not lost."""
    policy = replace(POLICY, evaluation=0.0, calibration=1.0)
    accused = candidate(1, REAL, source="studio", champion=0.99)
    (taken,) = select([accused], policy).items

    assert (taken.label, taken.why, taken.weight) == (Label.REAL, LabelSource.TRUSTED_SOURCE, 1.0)


def test_a_poisoned_batch_is_cut_down() -> None:
    """500 generated images that one account calls real: the cap, and what the champion sees."""
    batch = [candidate(number, ruling(Label.REAL, "mallory")) for number in range(500)]
    capped = select(batch, replace(ELSEWHERE, max_per_moderator=100))
    assert len(capped.items) == 100

    seen = select([replace(image, champion=0.95) for image in batch], ELSEWHERE)
    assert seen.items == ()
    assert seen.left_out == {"needs_second_person": 500}
