"""A moderator who leaves a transaction open holds nobody up for long, and a reader not at all."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors, sql
from sqlalchemy import text

from worker.database.engine import bootstrap
from worker.ledger.interface import Removal
from worker.ledger.postgres import PostgresLedger
from worker.moderation.originals import locked_originals
from worker.moderation.webhooks import replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from sqlalchemy import Engine

    from worker.localstack import LocalStack

PDQ = bytes(range(32))
#: Functions that write, and so may lock what they write.
WRITERS = {
    "claim_next", "claim", "extend", "skip", "release", "decide", "overturn", "undo", "opinion",
    "request_review", "open_appeal", "close_appeal", "place_hold", "lift_hold", "request_erasure",
}  # fmt: skip
#: Functions that read, and how they are called about an image. Postgres itself lets no others but
#: volatile functions lock.
READERS = {
    name: f"SELECT * FROM moderation.{name}(%(image)s)"  # noqa: S608 - constants
    for name in ("similar_images", "look_blind", "open_image")
}


def removal_of(image: Any, engine: Engine) -> Removal:
    """Return the event that says that an image's object is gone."""
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT bucket, key FROM app.images WHERE id = :image"), {"image": image}
        ).one()
    return Removal(bucket=row.bucket, key=row.key, sequencer="FF")


def state_of(image: Any, engine: Engine) -> Any:
    """Return the state of an image."""
    with engine.connect() as connection:
        query = text("SELECT state FROM app.images WHERE id = :image")
        return connection.scalar(query, {"image": image})


def locked_tables(superuser: psycopg.Connection) -> list[str]:
    """Return the tables of which somebody else holds a row, by asking for every one of them."""
    tables = superuser.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relkind = 'r'"
    ).fetchall()
    held = []
    for (name,) in tables:
        question = sql.SQL("SELECT FROM {} FOR UPDATE NOWAIT")
        try:
            superuser.execute(question.format(sql.Identifier("app", name)))
        except errors.LockNotAvailable:
            held.append(name)
    return held


def test_whoever_reads_locks_no_row(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """After every view and every reading function, in one open transaction, all rows are free."""
    image = scored(pdq=PDQ)
    scored(pdq=PDQ)
    reader = desk(lead=True)
    functions = superuser.execute(
        "SELECT DISTINCT proname FROM pg_proc "
        "WHERE pronamespace = 'moderation'::regnamespace AND provolatile = 'v'"
    ).fetchall()
    assert {name for (name,) in functions} == WRITERS | set(READERS), "reads it or writes it?"
    views = superuser.execute(
        "SELECT viewname FROM pg_views WHERE schemaname = 'moderation'"
    ).fetchall()
    with reader.connection.transaction():
        for question in READERS.values():
            reader.connection.execute(question, {"image": image})
        for (view,) in views:
            reader.connection.execute(
                sql.SQL("SELECT * FROM {}").format(sql.Identifier("moderation", view))
            )
        assert locked_tables(superuser) == []
        reader.value("SELECT moderation.open_appeal(%s)", image)
        assert "images" in locked_tables(superuser), "and a lock would have been seen"


def test_a_removal_does_not_wait_for_who_looks_at_neighbours(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine
) -> None:
    """While a transaction idles after `similar_images`, the removal of its object is kept."""
    image = scored(pdq=PDQ)
    reader = desk()
    with reader.connection.transaction():
        reader.rows("SELECT * FROM moderation.similar_images(%s)", image)
        assert PostgresLedger(engine).withdraw([removal_of(image, engine)]) == 1
    assert state_of(image, engine) == "withdrawn"


@pytest.mark.parametrize(
    "call",
    [
        "SELECT * FROM moderation.claim_next()",
        "SELECT * FROM moderation.claim(%(image)s)",
        "SELECT moderation.skip(%(image)s)",
        "SELECT moderation.opinion(%(image)s, 'real', 'real_original')",
        "SELECT moderation.decide(%(image)s, 'real', 'real_original')",
        "SELECT moderation.request_review(%(image)s)",
        "SELECT moderation.open_appeal(%(image)s)",
        "SELECT moderation.lift_hold(%(image)s, 'over')",
        "SELECT moderation.request_erasure(%(image)s, 'asked')",
    ],
)
def test_what_idles_after_writing_leaves_the_image_to_the_workers(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine, call: str
) -> None:
    """Rows that refer to an image, and the turn of who wrote them, keep no worker from it."""
    image = scored()
    clerk = desk(lead=True)
    with clerk.connection.transaction():
        clerk.connection.execute(call, {"image": image})
        PostgresLedger(engine).mark_published([image])
        with engine.connect() as worker:
            sent = text("SELECT published_at FROM app.images WHERE id = :image")
            assert worker.scalar(sent, {"image": image}) is not None


def test_a_hold_waits_for_a_removal_under_way(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine
) -> None:
    """While an image's original is being removed nobody is told that a hold protects it."""
    image = scored()
    lead = desk(lead=True)
    lead.connection.execute("SET lock_timeout = '100ms'")
    hold = "SELECT moderation.place_hold(%s, 'court')"
    with locked_originals(engine, [image]), pytest.raises(errors.LockNotAvailable):
        lead.value(hold, image)
    assert lead.value(hold, image) is not None


def test_every_login_of_a_moderator_has_limits(
    desk: Callable[..., Any], superuser: psycopg.Connection, engine: Engine
) -> None:
    """Members of the group are bound without further ado; the service has its own, shorter ones."""
    known = superuser.execute("SELECT name FROM pg_settings").fetchall()
    limits = {"idle_in_transaction_session_timeout": "30s", "transaction_timeout": "5min"}
    for name, value in limits.items():
        if (name,) in known:  # the second came with PostgreSQL 17
            assert desk().value(f"SHOW {name}") == value
    with engine.begin() as connection:
        ours = connection.scalar(text("SHOW idle_in_transaction_session_timeout"))
    assert ours == "15s"


def test_who_idles_too_long_is_sent_away(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine, stack: LocalStack,
    superuser: psycopg.Connection,
) -> None:  # fmt: skip
    """The server ends an idle transaction of a moderator; what waited for it goes on."""
    image = scored()
    limit = sql.SQL("ALTER DATABASE {} SET idle_in_transaction_session_timeout = '200ms'")
    superuser.execute(limit.format(sql.Identifier(superuser.info.dbname)))
    bootstrap(stack.postgres.url(database=superuser.info.dbname))  # leaves what somebody chose
    sleeper = desk()
    sleeper.connection.autocommit = False
    sleeper.value("SELECT moderation.open_appeal(%s)", image)
    assert PostgresLedger(engine).withdraw([removal_of(image, engine)]) == 1
    with pytest.raises(errors.IdleInTransactionSessionTimeout):
        sleeper.value("SELECT 1")


def test_only_people_are_bound_by_the_time_of_a_transaction(
    superuser: psycopg.Connection, stack: LocalStack, engine: Engine
) -> None:
    """Migrations, removals that wait for storage, and whoever ran bootstrap take their time."""
    known = "SELECT FROM pg_settings WHERE name = 'transaction_timeout'"
    if superuser.execute(known).fetchone() is None:
        pytest.skip("PostgreSQL 17 brought transaction_timeout")
    database = superuser.info.dbname
    for address in (stack.addresses.owner_url(database), stack.postgres.url(database=database)):
        with psycopg.connect(address.replace("+psycopg", "")) as connection:
            assert connection.execute("SHOW transaction_timeout").fetchone() == ("0",)
    with engine.begin() as connection:
        assert connection.scalar(text("SHOW transaction_timeout")) == "0"


@pytest.fixture
def small_queue(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Postgres with the smallest queue of notifications that it allows: 512 KiB for 8 GiB."""
    command = stack.postgres.command
    with monkeypatch.context() as patched:
        patched.setattr(
            stack.postgres, "command", lambda: [*command(), "-c", "max_notify_queue_pages=64"]
        )
        stack.postgres.stop()
        stack.postgres.start()
    yield
    stack.postgres.stop()
    stack.postgres.start()


def notify_for_ever(flooder: Any, size: int) -> None:
    """Send notifications of so many bytes until the server refuses one."""
    while True:
        flooder.connection.execute("SELECT pg_notify('somewhere', repeat('x', %s))", [size])


@contextmanager
def full_queue(listener: Any, flooder: Any) -> Iterator[None]:
    """Have one moderator listen and idle while another notifies until there is no room."""
    listener.connection.execute("LISTEN somewhere")
    with listener.connection.transaction():
        listener.value("SELECT 1")
        for size in (7900, 700, 70, 7):  # up to the last byte
            with pytest.raises(errors.ProgramLimitExceeded, match="too many notifications"):
                notify_for_ever(flooder, size)
        yield


@pytest.mark.usefixtures("small_queue")
def test_nothing_is_lost_when_moderators_fill_the_queue_of_notifications(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine,
    superuser: psycopg.Connection,
) -> None:  # fmt: skip
    """Verdicts, decisions, appeals and webhooks are stored while no notification can be sent."""
    topics = "verdict,decision,appeal.opened"
    superuser.execute("INSERT INTO app.config VALUES ('webhook_topics', %s)", [topics])
    clerk, before = desk(), scored()
    with full_queue(desk(), desk()):
        during = scored()
        assert state_of(during, engine) == "scored"
        for image in (before, during):
            clerk.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
            clerk.value("SELECT moderation.open_appeal(%s)", image)
        assert replay(engine, since=datetime.now(UTC) - timedelta(hours=1)) == 6
    told = superuser.execute("SELECT topic, count(*) FROM app.outbox GROUP BY topic").fetchall()
    assert dict(told) == dict.fromkeys(topics.split(","), 2)


def test_large_objects_are_nobodys(desk: Callable[..., Any]) -> None:
    """No function that makes, reads or changes a large object can be called by a moderator."""
    clerk = desk(lead=True)
    callable_ones = clerk.rows(
        "SELECT oid::regprocedure::text FROM pg_proc "
        "WHERE (proname LIKE 'lo\\_%%' OR proname IN ('loread', 'lowrite')) "
        "AND has_function_privilege(oid, 'EXECUTE')"
    )
    assert callable_ones == []
    for statement in ("SELECT lo_create(0)", "SELECT lo_creat(-1)", "SELECT lo_from_bytea(0, '')"):
        with pytest.raises(errors.InsufficientPrivilege):
            clerk.connection.execute(statement)
