"""Appeals need a second pair of eyes, and nobody who had a part in one flips its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

DECIDE = "SELECT moderation.decide(%s, 'generated', 'generated_artefacts')"
UPHOLD = "SELECT moderation.close_appeal(%s, 'upheld')"
OVERTURN_APPEAL = "SELECT moderation.close_appeal(%s, 'overturned', 'real_original')"
TO_REAL = "SELECT moderation.overturn(%s, 'real', 'real_original')"
TO_GENERATED = "SELECT moderation.overturn(%s, 'generated', 'generated_declared')"


@pytest.mark.parametrize("when", ["before the appeal", "after the appeal"])
def test_an_equal_opinion_does_not_free_who_decided(
    desk: Callable[..., Any], scored: Callable[..., UUID], when: str
) -> None:
    """The appeal stays bound to the decision appealed, whoever says the same before or after."""
    image, first, second, third = scored(), desk(), desk(), desk()
    first.value(DECIDE, image)
    if when == "before the appeal":
        second.value(DECIDE, image)
    appeal = third.value("SELECT moderation.open_appeal(%s)", image)
    if when == "after the appeal":
        second.value(DECIDE, image)
    for outcome in (UPHOLD, OVERTURN_APPEAL):
        with pytest.raises(errors.InsufficientPrivilege, match="somebody other"):
            first.value(outcome, appeal)
    if when == "before the appeal":
        with pytest.raises(errors.InsufficientPrivilege, match="somebody other"):
            second.value(UPHOLD, appeal)
    third.value(OVERTURN_APPEAL, appeal)
    assert third.rows("SELECT status, closed_by FROM moderation.appeals") == [
        ("overturned", third.name)
    ]
    assert third.value("SELECT decision FROM moderation.verdicts") == "real"


@pytest.mark.parametrize("part", ["decided", "opened", "closed"])
def test_a_lead_does_not_flip_the_outcome_of_an_appeal_of_theirs(
    desk: Callable[..., Any], scored: Callable[..., UUID], part: str
) -> None:
    """Neither by an overturn nor by a second appeal; another lead may."""
    image, lead, other, boss = scored(), desk(lead=True), desk(), desk(lead=True)
    people = {name: lead if name == part else other for name in ("decided", "opened", "closed")}
    if part != "closed":
        people["closed"] = desk()
    people["decided"].value(DECIDE, image)
    appeal = people["opened"].value("SELECT moderation.open_appeal(%s)", image)
    people["closed"].value(OVERTURN_APPEAL, appeal)
    with pytest.raises(errors.InsufficientPrivilege, match="had no part"):
        lead.value(TO_GENERATED, image)
    again = lead.value("SELECT moderation.open_appeal(%s)", image)
    with pytest.raises(errors.InsufficientPrivilege, match=r"had no part|somebody other"):
        lead.value("SELECT moderation.close_appeal(%s, 'overturned', 'generated_declared')", again)
    assert lead.rows("SELECT image_id FROM moderation.claim_next()") == []
    assert boss.value(TO_GENERATED, image)


def test_an_upheld_verdict_is_not_flipped_by_who_appealed(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Where no decision stands, deciding would be the way around."""
    image, lead, other = scored(), desk(lead=True), desk()
    appeal = lead.value("SELECT moderation.open_appeal(%s)", image)
    other.value(UPHOLD, appeal)
    with pytest.raises(errors.InsufficientPrivilege, match="had no part"):
        lead.value("SELECT moderation.decide(%s, 'real', 'real_original')", image)
    assert desk().value(DECIDE, image)


def test_an_appeal_that_was_overturned_meanwhile_is_closed_without_a_second_decision(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """What is overturned is the decision appealed; a lead has done so already."""
    image, first, lead, closer = scored(), desk(), desk(lead=True), desk()
    first.value(DECIDE, image)
    appeal = closer.value("SELECT moderation.open_appeal(%s)", image)
    made = lead.value(TO_REAL, image)
    assert closer.value("SELECT moderation.close_appeal(%s, 'overturned')", appeal) is None
    assert closer.value("SELECT count(*) FROM moderation.decisions") == 2
    history = (
        "SELECT (detail ->> 'decision_id')::bigint FROM moderation.image_history "
        "WHERE event = 'appeal overturned'"
    )
    assert closer.value(history) == made


def test_a_dropped_appeal_binds_nobody(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Without a judgement there is no outcome to protect."""
    image, lead = scored(), desk(lead=True)
    lead.value(DECIDE, image)
    appeal = lead.value("SELECT moderation.open_appeal(%s)", image)
    lead.value("SELECT moderation.close_appeal(%s, 'dropped')", appeal)
    assert lead.value(TO_REAL, image)
