"""Migrations run on a real server, in both directions, and grant what the service needs only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import create_engine, exc, inspect, text
from sqlalchemy.pool import NullPool

from tests.support.ledger_contract import scored
from tests.support.waiting import eventually
from worker.database.engine import SchemaOutdated, alembic_config, bootstrap, downgrade, migrate
from worker.database.table_base import Base
from worker.ledger import tables_training  # noqa: F401 - it knows every table
from worker.ledger.postgres import PostgresLedger
from worker.models.registry import ModelsRegistry
from worker.moderation.flagging_breaker import check_breakers

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy import Engine

    from worker.localstack import LocalStack


@pytest.fixture
def owner(owner_url: str) -> Iterator[Engine]:
    """Connections of the owner."""
    engine = create_engine(owner_url, poolclass=NullPool)
    yield engine
    engine.dispose()


def constraints(engine: Engine) -> set[tuple[str, str, str]]:
    """List every constraint and index of schema app as Postgres prints it."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
                "FROM pg_constraint WHERE connamespace = 'app'::regnamespace AND contype <> 't' "
                "UNION SELECT tablename, indexname, indexdef FROM pg_indexes "
                "WHERE schemaname = 'app' AND tablename <> 'alembic_version'"
            )
        )
        return {(row[0], row[1], row[2]) for row in rows if "alembic_version" not in row[0]}


def test_down_and_up_again(owner_url: str, owner: Engine) -> None:
    """Going down leaves nothing but the version table, and going up again works."""
    downgrade(owner_url, "base")
    assert inspect(owner).get_table_names("app") == ["alembic_version"]
    with owner.connect() as connection:
        left = connection.scalar(
            text("SELECT count(*) FROM pg_proc WHERE pronamespace = 'app'::regnamespace")
        )
    assert left == 0
    migrate(owner_url)
    expected = {table.name for table in Base.metadata.sorted_tables} | {"alembic_version"}
    assert set(inspect(owner).get_table_names("app")) == expected


def test_the_models_and_the_migrations_agree(owner_url: str) -> None:
    """`alembic check` finds nothing that the migrations forgot."""
    command.check(alembic_config(owner_url))


def test_the_constraints_of_models_and_migrations_agree(owner_url: str, owner: Engine) -> None:
    """Alembic does not compare CHECK constraints, so Postgres' own listing is compared."""
    migrated = constraints(owner)
    downgrade(owner_url, "base")
    Base.metadata.create_all(owner)
    assert constraints(owner) == migrated


def test_two_pods_may_migrate_at_once(owner_url: str, owner: Engine) -> None:
    """Racing migrators take turns; none fails."""
    downgrade(owner_url, "base")
    with ThreadPoolExecutor(1) as pool, owner.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(hashtext('alembic'))"))
        waiting = pool.submit(migrate, owner_url)
        assert inspect(owner).get_table_names("app") == ["alembic_version"]
        other.execute(text("SELECT pg_advisory_unlock(hashtext('alembic'))"))
        waiting.result(timeout=60)
    assert "images" in inspect(owner).get_table_names("app")


def waits(owner: Engine, query: str) -> int | None:
    """Return the process of the migration that waits for a lock in such a statement, if any."""
    with owner.connect() as connection:
        process: int | None = connection.scalar(
            text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'unlatent-migrate' AND wait_event_type = 'Lock'"
                " AND query LIKE :query"
            ),
            {"query": f"{query}%"},
        )
    return process


def test_an_index_that_was_cut_short_is_made_again(owner_url: str, owner: Engine) -> None:
    """A migration that ended while it made an index leaves nothing in the way of the next try."""
    downgrade(owner_url, "0013")
    with ThreadPoolExecutor(1) as pool, owner.connect() as other:
        other.execute(text("INSERT INTO app.object_removals (bucket, key) VALUES ('b', 'k')"))
        cut_short = pool.submit(migrate, owner_url)
        making = "CREATE INDEX CONCURRENTLY"
        eventually(lambda: waits(owner, making) is not None, what="the making of an index")
        other.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": waits(owner, making)})
        with pytest.raises(exc.OperationalError, match="cancel"):
            cut_short.result(timeout=60)
        other.commit()
    migrate(owner_url)
    with owner.connect() as connection:
        unfinished = connection.scalars(
            text("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid")
        ).all()
    assert unfinished == []
    command.check(alembic_config(owner_url))


def test_a_verdict_that_is_being_recorded_is_let_through(owner_url: str, owner: Engine) -> None:
    """A migration waits for whoever writes a verdict and then a message, and holds nothing up."""
    downgrade(owner_url, "0013")
    with ThreadPoolExecutor(1) as pool, owner.connect() as other:
        other.execute(text("LOCK TABLE app.verdicts IN ROW EXCLUSIVE MODE"))
        migrating = pool.submit(migrate, owner_url)
        for table in ("leases", "decisions", "outbox"):
            eventually(lambda: waits(owner, "") is not None, what="the migration")
            other.execute(text(f"LOCK TABLE app.{table} IN ROW EXCLUSIVE MODE NOWAIT"))
        other.commit()
        assert migrating.result(timeout=60)
    assert inspect(owner).has_table("verdict_counts", schema="app")


@contextmanager
def writing(connection: psycopg.Connection, table: str) -> Iterator[None]:
    """Hold a table as a writer does; a migration that crosses it gives way first."""
    connection.execute("BEGIN")
    connection.execute("SET LOCAL deadlock_timeout = '1min'")
    connection.execute(f"LOCK TABLE app.{table} IN ROW EXCLUSIVE MODE".encode())
    try:
        yield
    finally:
        connection.execute("COMMIT")


def test_a_migration_that_crosses_a_writer_is_tried_again(
    owner_url: str, owner: Engine, superuser: psycopg.Connection
) -> None:
    """A migration gives way to a transaction that writes in another order, and is done after it."""
    downgrade(owner_url, "0008")
    with ThreadPoolExecutor(1) as pool:
        with writing(superuser, "provenance"):
            migrating = pool.submit(migrate, owner_url)
            eventually(lambda: waits(owner, "") is not None, what="the migration")
            superuser.execute("LOCK TABLE app.verdicts IN ROW EXCLUSIVE MODE")
        assert migrating.result(timeout=60)
    command.check(alembic_config(owner_url))


def test_views_and_triggers_that_meet_a_writer_are_installed_after_it(
    owner_url: str, owner: Engine, superuser: psycopg.Connection
) -> None:
    """Waiting for a lock has an end and then another try, until the writer is done."""
    superuser.execute("COMMENT ON SCHEMA moderation IS 'of an earlier release'")
    with ThreadPoolExecutor(1) as pool:
        with writing(superuser, "decisions"):
            migrating = pool.submit(migrate, owner_url)
            eventually(lambda: waits(owner, "") is not None, what="the first try")
            first = waits(owner, "")
            eventually(lambda: waits(owner, "") not in {None, first}, what="another try")
        assert migrating.result(timeout=60)
    mark = superuser.execute("SELECT obj_description('moderation'::regnamespace)").fetchone()
    assert "sha256" in str(mark)


def test_the_schema_of_a_newer_release_stays_as_it_is(owner_url: str, owner: Engine) -> None:
    """A release that is gone back to leaves what it does not know, and says so."""
    with owner.begin() as connection:
        connection.execute(text("UPDATE app.alembic_version SET version_num = 'newer'"))
    assert not migrate(owner_url)
    with owner.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM app.alembic_version")) == "newer"
    with pytest.raises(CommandError, match="mistyped"):
        migrate(owner_url, "mistyped")


def test_an_administrator_who_is_no_superuser_prepares_a_database(stack: LocalStack) -> None:
    """Whoever may create roles and owns the database, as managed services let one, can do it."""
    superuser = create_engine(
        stack.postgres.url(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with superuser.connect() as connection:
        connection.execute(text("CREATE ROLE administrator LOGIN CREATEROLE PASSWORD 'secret'"))
        for role in ("unlatent_owner", "unlatent_app", "moderator"):
            # What the creator of a role gets with it.
            connection.execute(
                text(f"GRANT {role} TO administrator WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
            )
        connection.execute(text("CREATE DATABASE managed OWNER administrator"))
    url = stack.postgres.url(user="administrator", password="secret", database="managed")
    bootstrap(url)
    bootstrap(url)
    migrate(stack.addresses.owner_url("managed"))
    assert inspect(
        create_engine(stack.addresses.owner_url("managed"), poolclass=NullPool)
    ).has_table("images", "app")


def test_a_schema_of_an_earlier_release_is_named_in_words(owner_url: str, engine: Engine) -> None:
    """A missing table, column or function says what to run; what the schema has goes on."""
    downgrade(owner_url, "0004")
    with pytest.raises(SchemaOutdated, match=r'unlatent migrate`.*"app\.shadow" does not exist'):
        ModelsRegistry(engine).active()
    assert PostgresLedger(engine).backlog().pending == 0
    downgrade(owner_url, "base")
    with pytest.raises(SchemaOutdated, match=r'"app\.images" does not exist'):
        PostgresLedger(engine).backlog()
    with pytest.raises(SchemaOutdated, match=r"app\.check_breakers\(\) does not exist"):
        check_breakers(engine)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE app.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE SCHEMA mine",
        "ALTER TABLE app.images ADD COLUMN mine int",
        "DROP TABLE app.outbox",
        "TRUNCATE app.outbox",
        "TRUNCATE app.decisions",
        "DELETE FROM app.images",
        "DELETE FROM app.decisions",
        "UPDATE app.decisions SET note = 'mine'",
        "UPDATE app.appeals SET note = 'mine'",
        "DELETE FROM app.audit_log",
        "UPDATE app.audit_log SET actor = 'mine'",
        "INSERT INTO app.audit_log (action) VALUES ('mine')",
        "DELETE FROM app.champion",
        "UPDATE app.champion SET actor = 'mine'",
        "UPDATE app.alembic_version SET version_num = 'mine'",
        "CREATE ROLE mine",
        "SET ROLE unlatent_owner",
        "COPY app.images TO PROGRAM 'true'",
        "SELECT app.audit_image_state()",
    ],
)
def test_the_service_role_is_refused(engine: Engine, statement: str) -> None:
    """The worker's role cannot change the schema, destroy rows or touch the audit."""
    refused = pytest.raises(exc.ProgrammingError, match=r"permission denied|must be owner")
    with refused, engine.begin() as connection:
        connection.execute(text(statement))


#: What a role may do beyond reading, adding and changing rows; each query must find nothing.
TOO_MUCH = {
    "privileges of tables": """
        SELECT relation.oid::regclass::text, privilege
        FROM pg_class relation,
            unnest(ARRAY['DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) privilege
        WHERE relation.relnamespace IN ('app'::regnamespace, 'moderation'::regnamespace)
            AND relation.relkind IN ('r', 'p', 'v', 'm')
            AND has_table_privilege(current_user, relation.oid, privilege)
            -- `unlatent moderators disallow`
            AND (relation.oid, privilege) <> ('app.moderators'::regclass, 'DELETE')""",
    "schemas to create in": """
        SELECT nspname FROM pg_namespace
        WHERE has_schema_privilege(current_user, oid, 'CREATE') AND nspname !~ '^pg_temp'""",
    "rights on the database": """
        SELECT privilege FROM unnest(ARRAY['CREATE', 'TEMPORARY']) privilege
        WHERE has_database_privilege(current_user, 'unlatent', privilege)""",
    "attributes": """
        SELECT rolname FROM pg_roles WHERE rolname = current_user
            AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)""",
    "memberships": """
        SELECT roleid::regrole::text FROM pg_auth_members
        WHERE member = current_user::regrole""",
    "things it owns": """
        SELECT relname FROM pg_class WHERE relowner = current_user::regrole
        UNION ALL SELECT proname FROM pg_proc WHERE proowner = current_user::regrole
        UNION ALL SELECT nspname FROM pg_namespace WHERE nspowner = current_user::regrole""",
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_the_service_role_has_no_other_rights(what: str, engine: Engine) -> None:
    """Whatever later migrations add, the worker's role destroys, creates and owns nothing."""
    with engine.connect() as connection:
        assert connection.execute(text(TOO_MUCH[what])).all() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE app.audit_log SET actor = 'mine'",
        "DELETE FROM app.audit_log",
        "TRUNCATE app.audit_log",
        "DELETE FROM app.decisions",
        "DELETE FROM app.appeals",
        "UPDATE app.policies SET flag = 0",
        "TRUNCATE app.champion CASCADE",
    ],
)
def test_append_only_binds_the_owner_too(owner: Engine, statement: str) -> None:
    """Triggers refuse what grants cannot."""
    refused = pytest.raises(exc.ProgrammingError, match="append-only")
    with refused, owner.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("state", ["pending", "failed", "quarantined", "superseded"])
def test_a_scored_image_stays_scored(engine: Engine, state: str) -> None:
    """No statement moves a terminal row elsewhere, except a removal or a reopening."""
    scored(PostgresLedger(engine))
    reason = None if state == "pending" else "mine"
    refused = pytest.raises(exc.IntegrityError, match="cannot go from scored")
    with refused, engine.begin() as connection:
        connection.execute(
            text("UPDATE app.images SET state = :state, reason = :reason"),
            {"state": state, "reason": reason},
        )
