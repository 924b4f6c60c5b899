"""Label, words and distance of a verdict, as moderators read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from detection.score import Label, distance_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

#: Score, label, distance, why it was not judged; then tier, words and what the history says.
CASES = [
    (0.74, "real", -1.84, None, "review", "below", "real: below, -1.8 (review)"),
    (0.865, "real", -1.03, None, "review", "below", "real: below, -1.0 (review)"),
    (0.5, "unsure", None, "too small: 9", "review", "not judged", "unsure: not judged (review)"),
    (
        0.925,
        "unsure",
        -0.38,
        None,
        "flag",
        "not surely beyond",
        "unsure: not surely beyond, -0.4 (flag by score alone)",
    ),
    (0.95, "generated", 0.1, None, "flag", "just beyond", "generated: just beyond, +0.1 (flag)"),
    (0.95, "generated", None, None, "flag", None, "generated (flag)"),  # of an earlier release
]


@pytest.mark.parametrize(
    ("score", "label", "distance", "outside", "tier", "words", "summary"), CASES
)
def test_views_and_explanation_say_label_words_and_distance(
    score: float,
    label: str,
    distance: float | None,
    outside: str | None,
    tier: str,
    words: str | None,
    summary: str,
    *,
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
) -> None:
    """Score and tier stay in their columns; no sentence gives a probability."""
    image = scored(score, label=label, distance=distance, outside=outside)
    someone = desk()
    for view in ("verdicts", "review_queue"):
        query = f"SELECT label, score, distance, distance_words, tier FROM moderation.{view}"  # noqa: S608
        assert someone.rows(query) == [(label, score, distance, words, tier)]
    told = someone.value("SELECT explanation FROM moderation.verdicts")
    assert told.startswith(f'The detector says "{label}"')
    assert "%" not in told
    assert re.search(r"\b0\.\d{2,}|\d{2}\.\d", told) is None
    if distance is not None:
        assert f"{words} the point of accusation" in told
        assert f"(distance {distance:+.1f})" in told
    assert ("makes its tier flag by score alone" in told) == (label == "unsure" and tier == "flag")
    history = (
        "SELECT summary FROM moderation.image_history WHERE image_id = %s AND event = 'verdict'"
    )
    assert someone.value(history, image) == summary


def test_postgres_and_python_use_the_same_words(desk: Callable[..., Any]) -> None:
    """At, below and above every bound."""
    someone = desk()
    for label in Label:
        for distance in (None, -9.0, -3.0, -2.9, -1.0, -0.9, 0.0, 0.9, 1.0, 2.9, 3.0, 9.0):
            for outside in (None, "too small: 9"):
                found = someone.value(
                    "SELECT moderation.distance_words(%s, %s::float8, %s)",
                    label.value,
                    distance,
                    outside,
                )
                assert found == distance_words(label, distance, outside)
