"""The rights that the next release takes from the worker's role are not needed by what it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from detection.errors import SettingsError
from worker.moderation import policies
from worker.moderation.flagging_breaker import check_breakers, resume_flagging
from worker.moderation.moderators import allow, disallow, source_grants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.localstack import LocalStack

REPOSITORY = Path(__file__).parents[4]

#: What a worker whose decoder was taken over would try.
ATTACKS = (
    "INSERT INTO app.moderators (moderator, every_source, lead) VALUES (SESSION_USER, true, true)",
    "UPDATE app.moderators SET lead = true",
    "DELETE FROM app.moderators",
    "UPDATE app.legal_holds SET lifted_at = now()",
    "INSERT INTO app.legal_holds (image_id, reason) SELECT id, 'mine' FROM app.images",
    "INSERT INTO app.policies (review, flag, flag_high, reason) VALUES (1, 1, 1, 'mine')",
    (
        "INSERT INTO app.decisions (image_id, moderator, decision, reason_code, why_reviewed) "
        "SELECT id, 'kim', 'real', 'real_original', 'audit' FROM app.images"
    ),
    "UPDATE app.reviews SET closed_at = now()",
    "UPDATE app.claims SET closed_at = now()",
    "UPDATE app.breakers SET closed_at = now()",
    *(
        f"INSERT INTO app.{table} DEFAULT VALUES"
        for table in ("claims", "breakers", "reviews", "appeals")
    ),
    "SELECT app.resume_flagging('web', 'mine', 'kim')",
    (
        "SELECT set_config('unlatent.caller', 'kim', true), moderation.lift_hold(id, 'mine') "
        "FROM app.images"
    ),
    "SET ROLE unlatent_operator",
    "SET ROLE unlatent_console",
)


@pytest.fixture
def operator(stack: LocalStack, database: str) -> Iterator[Engine]:
    """Connections of the operator."""
    engine = create_engine(stack.addresses.operator_url(database), poolclass=NullPool)
    yield engine
    engine.dispose()


def _next_release() -> str:
    """Return what docs/deploy.md says that the next release does."""
    guide = (REPOSITORY / "docs" / "deploy.md").read_text()
    found = re.search(r"```\n((?:REVOKE [^`]+?;\n)+)```", guide)
    assert found is not None
    return found[1]


def test_the_worker_works_without_what_only_people_need(
    stack: LocalStack,
    database: str,
    superuser: psycopg.Connection,
    engine: Engine,
    operator: Engine,
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
) -> None:
    """Scoring, queueing and the breaker go on; making leads and lifting holds is the operator's."""
    lead, newcomer = desk(lead=True), desk(allowed=False)
    superuser.execute(_next_release().encode())
    image = scored(0.97)
    lead.value("SELECT moderation.place_hold(%s, 'court')", image)
    assert lead.rows("SELECT image_id FROM moderation.claim_next()") == [(image,)]
    assert check_breakers(engine) == []
    url = stack.addresses.database_url(database).replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as worker:
        for attack in ATTACKS:
            with pytest.raises(errors.InsufficientPrivilege):
                worker.execute(attack.encode())
    allow(operator, newcomer.name, sources=["web"])
    assert newcomer.value("SELECT count(*) FROM moderation.review_queue") == 1
    assert disallow(operator, newcomer.name)
    draft = policies.PolicyDraft(source="web", review=0.5, flag=0.9, flag_high=0.99)
    assert policies.activate(operator, draft, reason="tried")
    assert not resume_flagging(operator, "web", reason="tried", by="kim")


def test_a_moderator_by_single_sign_on_needs_no_login(
    engine: Engine, desk: Callable[..., Any]
) -> None:
    """Only with `sso`, and never under the name of a role that is not a moderator's."""
    with pytest.raises(SettingsError, match="is no login of a moderator"):
        allow(engine, "mia@example.com", sources=["web"])
    allow(engine, "mia@example.com", sources=["web"], sso=True)
    assert [(one.moderator, one.sources) for one in source_grants(engine)] == [
        ("mia@example.com", ("web",))
    ]
    for name in ("unlatent_app", "unlatent_console", "unlatent_operator", "unlatent_owner"):
        with pytest.raises(SettingsError, match="a role of the database"):
            allow(engine, name, sources=None, sso=True)
    with pytest.raises(SettingsError, match="blanks"):
        allow(engine, " mia@example.com", sources=None, sso=True)
    both = desk(allowed=False)
    allow(engine, both.name, sources=None, sso=True)
    assert both.value("SELECT every_source FROM moderation.me")
