"""Who may call which function: every function of schema moderation against every kind of caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

from worker.moderation.moderators import allow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy import Engine

    from tests.integration.moderation.desk.conftest import Console
    from worker.localstack import LocalStack

OK, NOTHING, REFUSED, UNKNOWN = "ok", "no row", "refused", "no such image"

#: Function, what it takes to call it, and what a moderator gets and a lead. {free} waits, {decided}
#: was decided by somebody else, {appeal} is an appeal against that, {held} is under a legal hold.
CALLS = (
    ("claim_next", "claim_next(1, NULL, '{{web}}')", (), OK, OK),
    ("claim", "claim('{free}')", (), OK, OK),
    ("extend", "extend('{free}')", ("claim('{free}')", "{wait}"), OK, OK),
    ("skip", "skip('{free}', 'no')", (), OK, OK),
    ("release", "release('{free}')", ("claim('{free}')",), OK, OK),
    ("look_blind", "look_blind('{free}')", (), OK, OK),
    ("open_image", "open_image('{free}')", (), OK, OK),
    ("opinion", "opinion('{free}', 'real', 'real_original')", (), OK, OK),
    ("decide", "decide('{free}', 'real', 'real_original')", (), OK, OK),
    (
        "undo",
        "undo('{free}', 'unsure', 'unsure_mixed')",
        ("decide('{free}', 'real', 'real_original')",),
        OK,
        OK,
    ),
    ("overturn", "overturn('{decided}', 'real', 'real_original')", (), REFUSED, OK),
    ("request_review", "request_review('{decided}')", (), OK, OK),
    ("open_appeal", "open_appeal('{free}')", (), OK, OK),
    ("close_appeal", "close_appeal('{appeal}', 'upheld')", (), OK, OK),
    ("similar_images", "similar_images('{free}')", (), NOTHING, NOTHING),
    ("same_uploader", "same_uploader('{free}')", (), OK, OK),
    ("place_hold", "place_hold('{free}', 'court')", (), REFUSED, OK),
    ("lift_hold", "lift_hold('{held}', 'over')", (), REFUSED, OK),
    ("request_erasure", "request_erasure('{free}', 'asked')", (), REFUSED, OK),
    ("recall", "recall()", (), OK, OK),
    ("image_facts", "image_facts('{free}')", (), OK, OK),
    ("my_claims", "my_claims()", (), NOTHING, NOTHING),
)
#: What somebody of another source gets instead of an unknown image.
ELSEWHERE = {"claim_next": NOTHING, "recall": NOTHING, "my_claims": NOTHING}

#: Who calls, by the name of the fixture's entry.
CALLERS = (
    "anonymous",
    "member without a row",
    "moderator of another source",
    "moderator",
    "lead",
    "console for a moderator",
    "console for a lead",
    "console for a moderator of another source",
    "console for somebody by single sign-on",
    "console without a caller",
    "console for nobody known",
    "worker",
    "a moderator who names a lead",
)


def expected(caller: str, name: str, moderator: str, lead: str) -> str:
    """Return what the table says that a caller gets of one function."""
    if caller in {
        "anonymous",
        "member without a row",
        "console without a caller",
        "console for nobody known",
        "worker",
    }:
        return REFUSED
    if "another source" in caller:
        return ELSEWHERE.get(name, UNKNOWN)
    return lead if caller in {"lead", "console for a lead"} else moderator


@pytest.fixture
def world(
    desk: Callable[..., Any], scored: Callable[..., UUID], superuser: psycopg.Connection
) -> dict[str, Any]:
    """Images in every state that a call needs."""
    free, decided, held = scored(0.97), scored(0.97), scored(0.97)
    someone, lead = desk(), desk(lead=True)
    someone.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", decided)
    appeal = lead.value("SELECT moderation.open_appeal(%s)", decided)
    lead.value("SELECT moderation.place_hold(%s, 'court')", held)
    # A claim is prolonged only when some of it is over.
    superuser.execute(
        "CREATE FUNCTION public.age_claims() RETURNS void LANGUAGE sql SECURITY DEFINER AS "
        "$$ UPDATE app.claims SET until = until - interval '5 min' WHERE closed_at IS NULL $$"
    )
    superuser.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    return {"free": free, "decided": decided, "held": held, "appeal": appeal}


@pytest.fixture
def callers(
    desk: Callable[..., Any],
    console: Console,
    engine: Engine,
    stack: LocalStack,
    database: str,
    superuser: psycopg.Connection,
) -> Iterator[dict[str, tuple[psycopg.Connection, str | None]]]:
    """Every kind of caller: the connection, and whom it names."""
    moderator, lead, other = desk("web"), desk("web", lead=True), desk("forum", lead=True)
    login = f"stranger_{uuid4().hex[:8]}"
    superuser.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'secret'")
    superuser.execute(f'GRANT CONNECT ON DATABASE "{database}" TO {login}')
    allow(engine, "mia@example.com", sources=["web"], sso=True)
    address = stack.postgres.dsn(database)
    stranger = psycopg.connect(
        psycopg.conninfo.make_conninfo(address, user=login, password="secret"), autocommit=True
    )
    url = stack.addresses.database_url(database).replace("postgresql+psycopg", "postgresql")
    worker = psycopg.connect(url, autocommit=True)
    yield {
        "anonymous": (stranger, None),
        "member without a row": (desk(allowed=False).connection, None),
        "moderator of another source": (other.connection, None),
        "moderator": (moderator.connection, None),
        "lead": (lead.connection, None),
        "console for a moderator": (console.connection, moderator.name),
        "console for a lead": (console.connection, lead.name),
        "console for a moderator of another source": (console.connection, other.name),
        "console for somebody by single sign-on": (console.connection, "mia@example.com"),
        "console without a caller": (console.connection, None),
        "console for nobody known": (console.connection, "nobody"),
        "worker": (worker, None),
        "a moderator who names a lead": (moderator.connection, lead.name),
    }
    stranger.close()
    worker.close()
    superuser.execute(f'REVOKE CONNECT ON DATABASE "{database}" FROM {login}')
    superuser.execute(f"DROP ROLE {login}")


def outcome(
    connection: psycopg.Connection, name: str | None, statements: list[str]
) -> tuple[str, str]:
    """Run statements in a transaction that is undone; return what came of it, and the words."""
    try:
        with connection.transaction(force_rollback=True):
            if name is not None:
                connection.execute("SELECT set_config('unlatent.caller', %s, true)", [name])
            for statement in statements:
                rows = connection.execute(statement.encode()).fetchall()
    except errors.InsufficientPrivilege as error:
        return REFUSED, str(error)
    except errors.NoDataFound as error:
        return UNKNOWN, str(error)
    return (OK if rows else NOTHING), ""


@pytest.mark.timeout(180)
def test_who_may_call_what(
    world: dict[str, Any], callers: dict[str, tuple[psycopg.Connection, str | None]]
) -> None:
    """Each function answers each kind of caller as the table says, and no other way."""
    assert set(callers) == set(CALLERS)
    for name, call, before, moderator, lead in CALLS:
        statements = [
            "SELECT public.age_claims()"
            if one == "{wait}"
            else f"SELECT * FROM moderation.{one.format(**world)}"  # noqa: S608 - the table's
            for one in (*before, call)
        ]
        for caller, (connection, named) in callers.items():
            got, words = outcome(connection, named, statements)
            assert got == expected(caller, name, moderator, lead), (name, caller, words)


def test_the_table_has_every_function(superuser: psycopg.Connection) -> None:
    """A function that acts and is missing in the table fails here."""
    acting = superuser.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'moderation'::regnamespace AND prosecdef"
    ).fetchall()
    assert {row[0] for row in acting} == {call[0] for call in CALLS}


def test_views_show_a_caller_what_functions_let_them_act_on(
    world: dict[str, Any],
    callers: dict[str, tuple[psycopg.Connection, str | None]],
    superuser: psycopg.Connection,
) -> None:
    """Views with a source show the caller's only; to whoever may call nothing they are empty."""
    assert world
    views = superuser.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = 'moderation'::regnamespace AND c.relkind = 'v' "
        "AND a.attname = 'source'"
    ).fetchall()
    seen: dict[str, set[str]] = {caller: set() for caller in callers}
    for (view,) in views:
        for caller, (connection, named) in callers.items():
            query = sql.SQL("SELECT source FROM moderation.{}").format(sql.Identifier(view))
            try:
                with connection.transaction(force_rollback=True):
                    if named is not None:
                        connection.execute(
                            "SELECT set_config('unlatent.caller', %s, true)", [named]
                        )
                    rows = connection.execute(query).fetchall()
            except errors.InsufficientPrivilege:
                assert caller == "anonymous"
                continue
            seen[caller] |= {row[0] for row in rows} - {None}
    for caller, sources in seen.items():
        sees_web = expected(caller, "claim_next", OK, OK) == OK
        assert sources == ({"web"} if sees_web else set()), caller


def test_who_acts_through_the_console_stands_in_the_audit(
    world: dict[str, Any], console: Console, engine: Engine, desk: Callable[..., Any]
) -> None:
    """The actor is the moderator whom the console names, and `via` is the console."""
    allow(engine, "mia@example.com", sources=["web"], lead=True, sso=True)
    mia = "mia@example.com"
    console.rows(mia, "SELECT * FROM moderation.claim(%s)", world["free"])
    console.rows(mia, "SELECT moderation.decide(%s, 'real', 'real_original')", world["free"])
    console.rows(mia, "SELECT moderation.place_hold(%s, 'court')", world["free"])
    reader = desk(lead=True)
    told = reader.rows(
        "SELECT action, detail ->> 'via' FROM moderation.audit_trail WHERE actor = %s ORDER BY at",
        mia,
    )
    assert told == [(action, "unlatent_console") for action in ("claim", "decide", "place_hold")]
    assert reader.rows(
        "SELECT moderator FROM moderation.decisions WHERE image_id = %s", world["free"]
    ) == [(mia,)]
    held = "SELECT placed_by FROM moderation.holds WHERE image_id = %s"
    assert reader.rows(held, world["free"]) == [(mia,)]


def test_a_name_holds_for_one_transaction(console: Console, engine: Engine) -> None:
    """The next transaction of the same connection acts for nobody until it names somebody."""
    allow(engine, "mia@example.com", sources=None, sso=True)
    assert console.rows("mia@example.com", "SELECT moderator FROM moderation.me") == [
        ("mia@example.com",)
    ]
    assert console.rows(None, "SELECT moderator FROM moderation.me") == []
    with pytest.raises(errors.InsufficientPrivilege, match="did not say for which moderator"):
        console.rows(None, "SELECT * FROM moderation.claim_next()")
