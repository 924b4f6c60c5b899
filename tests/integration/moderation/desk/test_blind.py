"""Judging without knowing the verdict: the random audit and second opinions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg
    from sqlalchemy import Engine

OPINION = "SELECT moderation.opinion(%s, %s, %s)"
#: What the detector said, as it would stand in a row: nothing of it may.
SAID = ("0.1234", "real", "allow", "audit", "model-1", "far below", "fpr=0.01", "map")


@pytest.fixture
def audited(scored: Callable[..., UUID], engine: Engine, superuser: psycopg.Connection) -> UUID:
    """An image that was let through and drawn into the random audit, with an error map."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.policies (review, flag, flag_high, audit_share, reason) "
                "VALUES (0.5, 0.9, 0.98, 1, 'audit everything')"
            )
        )
    superuser.execute(
        "INSERT INTO app.config VALUES ('image_url', 'https://x/{id}'), ('evidence_url', 'https://x/{key}')"
    )
    return scored(0.1234, label="real", distance=-4.0, evidence_uri="s3://evidence/map")


@pytest.mark.parametrize("call", ["claim_next(1)", "claim_next(1, 'audit')", "claim('{}')"])
def test_the_audit_is_claimed_without_the_verdict(
    desk: Callable[..., Any], audited: UUID, call: str
) -> None:
    """The row has the picture's address and nothing that the detector said; so has its opening."""
    one = desk()
    claim = f"SELECT to_jsonb(c) FROM moderation.{call.format(audited)} c"  # noqa: S608 - ours
    row = one.rows(claim)[0][0]
    assert row["image_id"] == str(audited)
    assert row["image_url"] == f"https://x/{audited}"
    assert row["claimed_by"] == one.name
    opened = one.rows("SELECT to_jsonb(o) FROM moderation.open_image(%s) o", audited)[0][0]
    assert opened["blind"] is True
    assert opened["key"]
    for said in SAID:
        assert said not in json.dumps([row, opened]), said
    told = one.rows("SELECT action, detail FROM moderation.audit_trail ORDER BY at")
    assert [action for action, _ in told] == ["claim", "open_image"]
    assert all(detail["blind"] and "saw" not in detail for _, detail in told)


def test_a_blind_decision_is_marked_and_then_everything_is_shown(
    desk: Callable[..., Any], audited: UUID
) -> None:
    """The decision says that it was blind, the audit that nothing was shown."""
    one = desk()
    one.rows("SELECT * FROM moderation.claim_next()")
    one.value("SELECT moderation.decide(%s, 'real', 'real_plausible')", audited)
    assert one.rows("SELECT blind, why_reviewed FROM moderation.decisions") == [(True, "audit")]
    decided = "SELECT detail FROM moderation.audit_trail WHERE action = 'decide'"
    assert "saw" not in one.value(decided)
    opened = "SELECT blind, evidence_uri FROM moderation.open_image(%s)"
    assert one.rows(opened, audited) == [(False, "s3://evidence/map")]
    one.value("SELECT moderation.undo(%s, 'unsure', 'unsure_mixed')", audited)
    assert one.rows("SELECT blind FROM moderation.decisions ORDER BY decision_id") == [
        (True,),
        (False,),
    ]


def test_who_has_seen_the_verdict_is_not_blind_any_more(
    desk: Callable[..., Any], audited: UUID
) -> None:
    """An opening before the claim shows the verdict, and so do queues other than the audit."""
    one, two = desk(), desk()
    assert one.value("SELECT blind FROM moderation.open_image(%s)", audited) is False
    claimed = one.rows("SELECT queue, score FROM moderation.claim(%s)", audited)
    assert claimed == [("audit", 0.1234)]
    one.value("SELECT moderation.release(%s)", audited)
    one.value("SELECT moderation.request_review(%s)", audited)
    assert two.rows("SELECT queue, score FROM moderation.claim_next()") == [("requested", 0.1234)]
    two.value("SELECT moderation.decide(%s, 'real', 'real_plausible')", audited)
    assert two.value("SELECT blind FROM moderation.decisions") is False


def test_opinions_bind_nobody_and_tell_how_often_people_agree(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Agreement and Cohen's kappa of opinions with the last decision of somebody else."""
    images = [scored(0.97) for _ in range(4)]
    one, two, lead = desk(), desk(), desk(lead=True)
    codes = {"real": "real_edited", "generated": "generated_artefacts"}
    for image, opinion, decision in zip(
        images,
        ("real", "real", "generated", "generated"),
        ("real", "generated", "generated", None),
        strict=True,
    ):
        look = one.rows("SELECT to_jsonb(b) FROM moderation.look_blind(%s) b", image)[0][0]
        assert look["blind"] is True
        assert not {"label", "score", "queue", "evidence_url"} & set(look)
        one.value(OPINION, image, opinion, codes[opinion])
        assert two.value("SELECT count(*) FROM moderation.review_queue") >= 1
        if decision is not None:
            two.value("SELECT moderation.decide(%s, %s, %s)", image, decision, codes[decision])
    assert lead.value(
        "SELECT decision FROM moderation.verdicts WHERE image_id = %s", images[1]
    ) == ("generated")
    # 2 of 3 agree; by chance 4 of 9 would: (2/3 - 4/9) / (1 - 4/9) = 0.4.
    (row,) = lead.rows(
        "SELECT source, blind, opinions, agreed, agreement_rate, kappa FROM moderation.agreement"
    )
    assert row[:4] == ("web", True, 3, 2)
    assert row[4:] == pytest.approx((2 / 3, 0.4))
    assert lead.value("SELECT count(*) FROM moderation.opinions WHERE agrees IS NULL") == 1
    assert two.rows("SELECT * FROM moderation.opinions") == []
    assert one.value("SELECT count(*) FROM moderation.opinions") == 4
    history = two.rows(
        "SELECT summary, detail FROM moderation.image_history WHERE event = 'opinion'"
    )
    assert {summary for summary, _ in history} == {"a second opinion, blind"}
    assert "real" not in json.dumps([detail for _, detail in history])


def test_an_opinion_is_somebody_elses_and_given_once(
    desk: Callable[..., Any], scored: Callable[..., UUID]
) -> None:
    """Who decided has said what they think; a wrong reason is refused as for decisions."""
    image, one, two = scored(), desk(), desk()
    one.value("SELECT moderation.decide(%s, 'real', 'real_edited')", image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"decided image .* yourself"):
        one.value(OPINION, image, "real", "real_edited")
    with pytest.raises(errors.InvalidParameterValue, match="no reason 'real_edited' for unsure"):
        two.value(OPINION, image, "unsure", "real_edited")
    two.rows("SELECT * FROM moderation.open_image(%s)", image)
    two.value(OPINION, image, "real", "real_edited")
    assert two.value("SELECT blind FROM moderation.opinions") is False
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="given your opinion"):
        two.value(OPINION, image, "unsure", "unsure_mixed")
    given = "SELECT actor, reason FROM moderation.audit_trail WHERE action = 'opinion'"
    assert desk(lead=True).rows(given) == [(two.name, "real_edited")]
