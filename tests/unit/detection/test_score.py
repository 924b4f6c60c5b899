"""How the scores of an animation's frames become the score of the image."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from detection.intake.animation import ShownFrame
from detection.score import Label, Score, decide, describe_distance, distance_words


def _score(probability: float, outside: str | None = None) -> Score:
    return Score(
        probability=probability,
        label=Label.GENERATED if probability > 0.9 else Label.REAL,
        branches={},
        decided_by="lare",
        operating_point="fpr=0.01",
        prior=0.5,
        outside=outside,
    )


def _frames(*shares: float) -> list[ShownFrame]:
    nothing = np.zeros((0, 0, 3), np.uint8)
    return [ShownFrame(10 + number, share, nothing) for number, share in enumerate(shares)]


@pytest.mark.parametrize(
    ("shares", "probabilities", "decides"),
    [
        ((1.0,), (0.3,), 10),
        ((0.02, 0.98), (0.1, 0.95), 11),  # a decoy in front
        ((0.02, 0.98), (0.95, 0.1), 11),  # one bad frame accuses nobody
        ((0.4, 0.6), (0.95, 0.1), 11),
        ((0.5, 0.5), (0.95, 0.1), 10),  # half the time is enough
        ((0.2,) * 5, (0.95, 0.2, 0.96, 0.1, 0.97), 10),  # the lowest of the three that make half
        ((0.2,) * 5, (0.95, 0.2, 0.96, 0.1, 0.3), 14),
        ((0.3, 0.3, 0.4), (0.5, 0.5, 0.5), 11),  # equal scores: in the order of showing
    ],
)
def test_half_the_time_decides(
    shares: tuple[float, ...], probabilities: tuple[float, ...], decides: int
) -> None:
    """The score is the highest that frames of at least half the time reach, and names its frame."""
    scores = [_score(probability) for probability in probabilities]
    decided = decide(_frames(*shares), scores)
    assert decided.frame == decides
    assert decided.probability == probabilities[decides - 10]


def test_frames_without_anything_to_judge_are_left_out() -> None:
    """Blank frames for most of the time do not hide the others; alone they decide."""
    frames = _frames(0.8, 0.2)
    blank = _score(0.4, outside="blank")
    assert decide(frames, [blank, _score(0.95)]).frame == 11
    assert decide(frames, [blank, blank]).outside == "blank"


def test_false_accusations_of_independent_frames_are_rarer_than_of_one() -> None:
    """Of five frames that are each accused at 5 %, the image is at well under 5 %: exact sum."""
    rate, accused = 0.05, 0.0
    for pattern in product((False, True), repeat=5):
        scores = [_score(0.95 if one else 0.1) for one in pattern]
        if decide(_frames(*(0.2,) * 5), scores).label is Label.GENERATED:
            accused += rate ** sum(pattern) * (1 - rate) ** (5 - sum(pattern))
    assert accused == pytest.approx(0.001158, abs=1e-5)


@pytest.mark.parametrize(
    ("label", "distance", "outside", "said"),
    [
        ("real", -20.0, None, "real: far below, -20.0"),
        ("real", -3.0, None, "real: below, -3.0"),
        ("real", -1.84, None, "real: below, -1.8"),  # a score of 0.74 by the bundle `small`
        ("real", -1.0, None, "real: just below, -1.0"),
        ("unsure", -0.4, None, "unsure: not surely beyond, -0.4"),
        ("unsure", -5.0, None, "unsure: not surely beyond, -5.0"),  # a copy fell far below
        ("unsure", None, "too small: 64 pixels", "unsure: not judged"),
        ("unsure", -0.4, "too small: 64 pixels", "unsure: not judged, -0.4"),
        ("generated", 0.0, None, "generated: just beyond, +0.0"),
        ("generated", 1.0, None, "generated: beyond, +1.0"),
        ("generated", 3.0, None, "generated: far beyond, +3.0"),
        ("real", None, None, "real"),  # a verdict of an earlier release
    ],
)
def test_a_distance_is_said_in_words(
    label: str, distance: float | None, outside: str | None, said: str
) -> None:
    """Label, words by bounds, distance; what was not judged says so; old verdicts say the label."""
    assert describe_distance(label, distance, outside) == said


@pytest.mark.parametrize("distance", [-9.0, -2.0, -1e-12, 0.0, 1e-12, 2.0, 9.0])
def test_words_never_contradict_the_label(distance: float) -> None:
    """No rounding makes a photograph lie beyond the point, or an accused image below it."""
    assert "below" in str(distance_words("real", distance, None))
    assert distance_words("unsure", distance, None) == "not surely beyond"
    assert str(distance_words("generated", distance, None)).split()[-1] == "beyond"
