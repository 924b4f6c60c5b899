"""What one source must not learn of another, and words of ours where an argument is missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine


def test_a_group_does_not_name_another_sources_picture(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """A near duplicate of another source's report joins its group, whose name stays unsaid."""
    secret = "ab" * 32
    first = scored(pdq=bytes(range(32)), sha256=secret, source="forum")
    second = scored(pdq=bytes(range(32)))
    third = scored(pdq=bytes(range(32)))
    everybody = desk(lead=True)
    for image in (first, second, third):
        appeal = everybody.value("SELECT moderation.open_appeal(%s)", image)
        everybody.value("SELECT moderation.close_appeal(%s, 'overturned', 'real_original')", appeal)
    groups = (
        "SELECT DISTINCT detail ->> 'group' FROM moderation.image_history "
        "WHERE event = 'regression corpus'"
    )
    limited = desk("web", lead=True)
    assert everybody.rows(groups) == [(str(first),)]
    assert limited.rows(groups) == [(str(second),)]
    told = limited.rows("SELECT to_jsonb(h) FROM moderation.image_history h")
    assert secret not in json.dumps(told)
    assert str(first) not in json.dumps(told)


def test_reach_counts_the_uploads_of_one_source(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """Copies elsewhere neither show nor move an image in the queue; nor do they after it moved."""
    for _ in range(5):
        scored(0.995, sha256="cd" * 32, source="forum")
    here = [scored(0.995, sha256="cd" * 32) for _ in range(2)]
    reach = "SELECT reach FROM moderation.review_queue WHERE image_id = %s"
    one = desk("web")
    assert [one.value(reach, image) for image in here] == [1, 2]
    alone = scored(0.995, sha256="ef" * 32, source="unknown")
    for _ in range(3):
        scored(0.995, sha256="ef" * 32, source="unknown")
    moved = scored(0.995, sha256="ef" * 32, source="unknown")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE app.images SET source = 'web' WHERE id = :id"), {"id": moved}
        )
    assert one.value(reach, moved) == 1
    assert desk().value(reach, alone) == 1
    ranks = dict(one.rows("SELECT image_id, rank_at - queued_at FROM moderation.review_queue"))
    assert ranks[moved] == ranks[here[0]]


def test_what_else_somebody_sent_is_told_of_ones_own_sources(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """The newest first, with what was said of them; nothing of other sources and of nobody."""
    first, second = scored(0.97), scored(0.1)
    elsewhere = scored(0.97, source="forum")
    scored(uploader="bob@example.com")
    nameless = scored(uploader=None)
    scored(uploader=None)
    one, everybody = desk("web"), desk()
    everybody.value("SELECT moderation.decide(%s, 'real', 'real_edited')", first)
    found = "SELECT image_id, label, decision FROM moderation.same_uploader(%s)"
    assert one.rows(found, second) == [(first, "generated", "real")]
    assert everybody.rows(found, second) == [
        (elsewhere, "generated", None),
        (first, "generated", "real"),
    ]
    assert one.rows(found, nameless) == []


#: Calls with an argument missing, and a part of what is said.
MISSING = (
    ("claim(NULL)", "name an image"),
    ("extend(NULL)", "name an image"),
    ("skip(NULL, NULL)", "name an image"),
    ("release(NULL)", "name an image"),
    ("look_blind(NULL)", "name an image"),
    ("open_image(NULL)", "name an image"),
    ("opinion(NULL, 'real', 'real_original')", "name an image"),
    ("opinion('{0}', NULL, 'real_original')", "is real, generated or unsure"),
    ("opinion('{0}', 'real', NULL)", "no reason given for real"),
    ("decide(NULL, 'real', 'real_original')", "name an image"),
    ("decide('{0}', NULL, 'real_original')", "is real, generated or unsure"),
    ("decide('{0}', 'real', NULL)", "no reason given for real"),
    ("overturn(NULL, 'real', 'real_original')", "name an image"),
    ("undo(NULL, 'real', 'real_original')", "name an image"),
    ("undo('{0}', NULL, NULL)", "is real, generated or unsure"),
    ("request_review(NULL)", "name an image"),
    ("request_review('{0}', NULL)", "asked for as requested or report"),
    ("open_appeal(NULL)", "name an image"),
    ("close_appeal(NULL, 'upheld')", "no appeal is named"),
    ("close_appeal('{0}', 'upheld')", "no appeal"),
    ("similar_images(NULL)", "name an image"),
    ("similar_images('{0}', NULL)", "the distance is"),
    ("similar_images('{0}', 31, NULL)", "the count 1 to 1000"),
    ("same_uploader(NULL)", "name an image"),
    ("same_uploader('{0}', NULL)", "the count is 1 to 1000"),
    ("place_hold(NULL, 'court')", "name an image"),
    ("place_hold('{0}', NULL)", "with a reason"),
    ("place_hold('{0}', ' ')", "with a reason"),
    ("lift_hold('{0}', NULL)", "with a reason"),
    ("request_erasure('{0}', NULL)", "with a reason"),
    ("claim_next(NULL)", "between 1 and 100"),
    ("claim_next(1, NULL, '{{}}')", "name a source"),
)


def test_a_missing_argument_is_named(desk: Callable[..., Any], scored: Callable[..., UUID]) -> None:
    """No call with NULL ends in Postgres' own words, or does something."""
    image, lead = scored(), desk(lead=True)
    for call, words in MISSING:
        with pytest.raises(
            (errors.InvalidParameterValue, errors.NoDataFound, errors.InsufficientPrivilege),
            match=words,
        ):
            lead.rows(f"SELECT * FROM moderation.{call.format(image)}")  # noqa: S608 - ours
    assert lead.rows("SELECT * FROM moderation.audit_trail") == []


def test_whoever_listens_learns_no_id(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    pytestconfig: pytest.Config,
) -> None:
    """A login that may see nothing is woken, too, and told nothing."""
    if pytestconfig.getoption("--pooler") == "transaction":
        pytest.skip("notifications do not come through such a pooler")
    nobody: psycopg.Connection = desk(allowed=False).connection
    for channel in ("unlatent_verdicts", "unlatent_decisions", "unlatent_outbox"):
        nobody.execute(f"LISTEN {channel}".encode())
    desk().value("SELECT moderation.decide(%s, 'real', 'real_original')", scored())
    heard = list(nobody.notifies(timeout=30, stop_after=2))
    assert {note.channel for note in heard} == {"unlatent_verdicts", "unlatent_decisions"}
    assert {note.payload for note in heard} == {""}
