"""A slip is undone within minutes, and the platform never hears of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg
    from sqlalchemy import Engine

DECIDE = "SELECT moderation.decide(%s, 'generated', 'generated_artefacts')"
UNDO = "SELECT moderation.undo(%s, 'real', 'real_original', %s)"


@pytest.fixture
def told(superuser: psycopg.Connection) -> Callable[[], list[Any]]:
    """Return a function that lists the messages about decisions, sent or not."""
    superuser.execute("INSERT INTO app.config VALUES ('webhook_topics', 'decision')")

    def read() -> list[Any]:
        return superuser.execute(
            "SELECT payload ->> 'decision', (payload ->> 'overturns')::bigint, "
            "next_attempt_at - created_at FROM app.outbox ORDER BY id"
        ).fetchall()

    return read


def test_an_undone_decision_never_leaves(
    desk: Callable[..., Any], scored: Callable[..., UUID], told: Callable[[], list[Any]]
) -> None:
    """A decision waits 15 seconds; undone meanwhile, its message goes and nothing refers to it."""
    image, one = scored(), desk()
    one.rows("SELECT * FROM moderation.claim_next()")
    first = one.value(DECIDE, image)
    ((decision, overturns, held),) = told()
    assert (decision, overturns) == ("generated", None)
    assert held == pytest.approx(timedelta(seconds=15), abs=timedelta(seconds=1))
    second = one.value(UNDO, image, None)
    ((decision, overturns, _),) = told()
    assert (decision, overturns) == ("real", None)
    decisions = one.rows(
        "SELECT decision_id, decision, overturns, why_reviewed, seconds_to_decision IS NOT NULL "
        "FROM moderation.decisions ORDER BY 1"
    )
    assert decisions == [
        (first, "generated", None, "flagged", True),
        (second, "real", first, "flagged", True),
    ]
    assert one.value("SELECT decision FROM moderation.verdicts") == "real"


def test_a_decision_that_left_is_corrected_by_a_second_message(
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
    told: Callable[[], list[Any]],
    engine: Engine,
) -> None:
    """Once a dispatcher has taken the message, the next one says which decision it overturns."""
    image, one = scored(), desk()
    first = one.value(DECIDE, image)
    with engine.begin() as connection:
        connection.execute(text("UPDATE app.outbox SET attempts = 1"))
    one.value(UNDO, image, None)
    assert [(row[0], row[1]) for row in told()] == [("generated", None), ("real", first)]


def test_an_undone_overturn_still_says_what_it_overturned(
    desk: Callable[..., Any], scored: Callable[..., UUID], told: Callable[[], list[Any]]
) -> None:
    """The platform heard of the first decision only, and of what took its place in the end."""
    image, one, lead = scored(), desk(), desk(lead=True)
    first = one.value(DECIDE, image)
    lead.value("SELECT moderation.overturn(%s, 'unsure', 'unsure_mixed')", image)
    lead.value(UNDO, image, None)
    assert [(row[0], row[1]) for row in told()] == [("generated", None), ("real", first)]


def test_what_cannot_be_undone_is_said_in_words(
    desk: Callable[..., Any], scored: Callable[..., UUID], superuser: psycopg.Connection
) -> None:
    """Another's decision, an old one, the same again, and one that an appeal rests on."""
    image, one, lead = scored(), desk(), desk(lead=True)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="no decision of yours"):
        one.value(UNDO, image, None)
    one.value(DECIDE, image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="no decision of yours"):
        lead.value(UNDO, image, None)
    one.value(UNDO, image, "seen")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="that is what you decided"):
        one.value(UNDO, image, "seen")
    one.value(UNDO, image, "the raw file was seen")
    appeal = lead.value("SELECT moderation.open_appeal(%s)", image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="part of an appeal"):
        one.value(UNDO, image, None)
    lead.value("SELECT moderation.close_appeal(%s, 'overturned', 'generated_declared')", appeal)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="part of an appeal"):
        lead.value(UNDO, image, None)
    old = scored()
    one.value(DECIDE, old)
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("UPDATE app.decisions SET created_at = created_at - interval '6 minutes'")
    superuser.execute("RESET session_replication_role")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="from the last 5 minutes"):
        one.value(UNDO, old, None)


def test_a_slip_is_no_report_of_a_wrong_label(
    desk: Callable[..., Any], scored: Callable[..., UUID], superuser: psycopg.Connection
) -> None:
    """Undoing puts nothing into the regression corpus; a report that was slipped on still does."""
    image, reported, one = scored(0.97), scored(0.97), desk()
    corpus = "SELECT image_id, label FROM app.regression_items"
    one.value(DECIDE, image)
    one.value(UNDO, image, None)
    assert superuser.execute(corpus).fetchall() == []
    one.value("SELECT moderation.request_review(%s, 'report')", reported)
    one.value(DECIDE, reported)
    one.value(UNDO, reported, None)
    assert superuser.execute(corpus).fetchall() == [(reported, "real")]
