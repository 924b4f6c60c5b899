"""The queue respects people: who is given which image, and for how long."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors

from tests.integration.moderation.conftest import flat

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg

NEXT = "SELECT image_id FROM moderation.claim_next(%s)"


def test_a_skipped_image_goes_to_others_at_once_and_never_comes_back(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Whoever skips is given the next image; the skipped one is free for everybody else."""
    image, other = scored(0.9), scored(0.99)
    one, two = desk(), desk()
    assert flat(one.rows(NEXT, 1)) == [image]
    one.value("SELECT moderation.skip(%s, 'too close to home')", image)
    assert flat(one.rows(NEXT, 10)) == [other]
    assert flat(two.rows(NEXT, 1)) == [image]
    two.value("SELECT moderation.release(%s)", image)
    assert flat(one.rows(NEXT, 10)) == []
    told = "SELECT actor, summary FROM moderation.image_history WHERE event = 'skip'"
    assert two.rows(told) == [(one.name, "too close to home")]


def test_skipping_what_somebody_else_holds_leaves_their_claim(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """A skip is about the person who skips, and may be said again."""
    image = scored()
    holder, one = desk(), desk()
    holder.rows(NEXT, 1)
    for why in ("no", None):
        one.value("SELECT moderation.skip(%s, %s)", image, why)
    held = "SELECT claimed_by FROM moderation.review_queue"
    assert holder.value(held) == holder.name
    assert holder.value("SELECT moderation.release(%s)", image)
    assert flat(one.rows(NEXT, 1)) == []


def test_nobody_is_given_what_they_decided_last(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """A reported image goes to somebody other than who decided it, and so does an appeal."""
    image, first, second = scored(), desk(), desk()
    first.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    second.value("SELECT moderation.request_review(%s, 'report')", image)
    assert flat(first.rows(NEXT, 1)) == []
    assert flat(second.rows(NEXT, 1)) == [image]
    second.value("SELECT moderation.open_appeal(%s)", image)
    second.value("SELECT moderation.release(%s)", image)
    assert flat(first.rows(NEXT, 1)) == []
    with pytest.raises(errors.InsufficientPrivilege, match="somebody else closes"):
        first.rows("SELECT * FROM moderation.claim(%s)", image)
    assert flat(second.rows(NEXT, 1)) == [image]


def test_a_queue_and_sources_narrow_what_is_claimed(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Both may be named; sources that one may not see, or that are not, give nothing."""
    web, forum = scored(0.97), scored(0.97, source="forum")
    unsure = scored(0.6, label="unsure", source="forum")
    claim = "SELECT image_id FROM moderation.claim_next(10, %s, %s)"
    limited, everybody = desk("web"), desk()
    assert flat(limited.rows(claim, None, ["forum", "elsewhere"])) == []
    assert flat(everybody.rows(claim, "unsure", ["web"])) == []
    assert flat(everybody.rows(claim, "unsure", ["forum", None])) == [unsure]
    assert flat(everybody.rows(claim, None, ["forum"])) == [forum]
    assert flat(everybody.rows("SELECT image_id FROM moderation.claim_next(10)")) == [web]
    with pytest.raises(errors.InvalidParameterValue, match="name a source"):
        everybody.rows(claim, None, [])


def test_one_named_image_is_claimed_by_one(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Claiming again gives it again; another is told who holds it; only what waits is given."""
    image, passed = scored(0.97), scored(0.1)
    one, two = desk(), desk()
    claim = "SELECT image_id, claimed_by, score FROM moderation.claim(%s)"
    assert one.rows(claim, image) == one.rows(claim, image) == [(image, one.name, 0.97)]
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=f"claimed by {one.name}"):
        two.rows(claim, image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="does not wait"):
        one.rows(claim, passed)
    assert flat(two.rows(NEXT, 10)) == []
    assert one.value("SELECT count(*) FROM moderation.image_history WHERE event = 'claim'") == 1


def test_a_skipped_image_can_be_claimed_by_name(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """When everybody skipped an image, somebody may still take it on."""
    image, one = scored(), desk()
    one.value("SELECT moderation.skip(%s)", image)
    assert flat(one.rows("SELECT image_id FROM moderation.claim(%s)", image)) == [image]


def test_an_expired_claim_may_be_taken_over_by_name(
    desk: Callable[..., Any], scored: Callable[..., UUID], superuser: psycopg.Connection
) -> None:
    """The first one's claim is closed as expired, and they can neither extend nor decide."""
    image, slow, quick = scored(), desk(), desk()
    slow.rows(NEXT, 1)
    superuser.execute("UPDATE app.claims SET until = now() - interval '1 second'")
    superuser.execute("UPDATE app.reviews SET claimed_until = now() - interval '1 second'")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="no longer"):
        slow.value("SELECT moderation.extend(%s)", image)
    quick.rows("SELECT * FROM moderation.claim(%s)", image)
    outcomes = superuser.execute("SELECT moderator, outcome FROM app.claims ORDER BY id").fetchall()
    assert outcomes == [(slow.name, "expired"), (quick.name, None)]
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="claimed by"):
        slow.value("SELECT moderation.decide(%s, 'real', 'real_edited')", image)


def test_a_claim_is_prolonged_up_to_four_times_its_length(
    desk: Callable[..., Any], scored: Callable[..., UUID], superuser: psycopg.Connection
) -> None:
    """An hour after its beginning a claim of 15 minutes ends, however often it is prolonged."""
    image, one, two = scored(), desk(), desk()
    one.rows(NEXT, 1)

    def age(minutes: int) -> None:
        superuser.execute(
            "UPDATE app.claims SET since = since - %(m)s, until = until - %(m)s",
            {"m": timedelta(minutes=minutes)},
        )
        superuser.execute(
            "UPDATE app.reviews r SET claimed_until = c.until FROM app.claims c "
            "WHERE c.image_id = r.image_id"
        )

    for minutes in (14, 14, 14):
        age(minutes)
        until = one.value("SELECT moderation.extend(%s)", image)
        assert until == one.value("SELECT claimed_until FROM moderation.review_queue")
    age(14)
    ends = one.value("SELECT moderation.extend(%s)", image)
    began = superuser.execute("SELECT since FROM app.claims").fetchone()
    assert began is not None
    assert ends - began[0] == timedelta(minutes=60)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="cannot last longer"):
        one.value("SELECT moderation.extend(%s)", image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="do not hold"):
        two.value("SELECT moderation.extend(%s)", image)
    assert flat(two.rows(NEXT, 1)) == []


def test_two_who_claim_one_image_at_once_are_told_apart(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Of many who claim the same images by name and by queue at once, one holds each."""
    images = [scored() for _ in range(6)]
    desks = [desk() for _ in range(6)]
    start = threading.Barrier(len(desks))

    def work(number: int) -> list[Any]:
        start.wait()
        got = []
        for image in images[number:] + images[:number]:
            try:
                got += flat(desks[number].rows("SELECT image_id FROM moderation.claim(%s)", image))
            except errors.ObjectNotInPrerequisiteState:
                got += flat(desks[number].rows(NEXT, 1))
        return got

    with ThreadPoolExecutor(len(desks)) as pool:
        taken = [image for got in pool.map(work, range(len(desks))) for image in set(got)]
    assert sorted(taken) == sorted(images)
