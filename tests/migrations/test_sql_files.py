"""The SQL files of moderation are installed after every upgrade, and only when they changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from worker.database.engine import SchemaOutdated, migrate
from worker.moderation import sql_files

if TYPE_CHECKING:
    from pathlib import Path

    from worker.localstack import LocalStack

APPENDED = "SELECT m.moderator, m.every_source, m.sources, m.lead, m.added_at AS since"
RENAMED = "SELECT m.moderator AS login, m.every_source, m.sources, m.lead"
TODAY = "SELECT m.moderator, m.every_source, m.sources, m.lead"
READS_LATER = (
    "SELECT m.moderator, m.every_source, m.sources, m.lead,"
    " (SELECT count(*) FROM app.drift_readings) AS readings"
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the SQL files that a test may change."""
    for name in sql_files.FILES:
        (tmp_path / f"{name}.sql").write_text((sql_files.SQL / f"{name}.sql").read_text())
    monkeypatch.setattr(sql_files, "SQL", tmp_path)
    return tmp_path


def change(files: Path, name: str, old: str, new: str) -> None:
    """Replace a part of one of the files that must be there."""
    path = files / f"{name}.sql"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def columns(connection: psycopg.Connection, view: str) -> list[str]:
    """List the columns of a view of schema moderation as Postgres knows them."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
        "ORDER BY attnum",
        (f"moderation.{view}",),
    )
    return [row[0] for row in rows]


def installed(connection: psycopg.Connection) -> str:
    """Return the row version of one view's catalogue entry, which every installation changes."""
    row = connection.execute(
        "SELECT xmin::text FROM pg_class WHERE oid = 'moderation.me'::regclass"
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_unchanged_files_are_left_alone(owner_url: str, superuser: psycopg.Connection) -> None:
    """A second `migrate` of one release takes no lock on any view."""
    before = installed(superuser)
    migrate(owner_url)
    assert installed(superuser) == before


def test_no_reader_of_a_table_waits_for_an_installation(superuser: psycopg.Connection) -> None:
    """The first installation counts for minutes: until it ends it locks nobody out of a table."""
    superuser.execute("COMMENT ON SCHEMA moderation IS 'of an earlier release'")
    with superuser.transaction():
        superuser.execute("SET LOCAL ROLE unlatent_owner")
        assert sql_files.install_changed_sql(superuser)
        shut = superuser.execute(
            "SELECT c.oid::regclass::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            " WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock'"
            " AND c.relnamespace = 'app'::regnamespace AND c.relkind = 'r'"
        ).fetchall()
    assert shut == []


def test_a_view_gets_a_column(owner_url: str, superuser: psycopg.Connection, files: Path) -> None:
    """A changed file is installed without a new revision."""
    change(files, "views", TODAY, APPENDED)
    migrate(owner_url)
    assert columns(superuser, "me")[-1] == "since"


def test_a_view_may_read_what_a_later_revision_adds(
    stack: LocalStack, files: Path, superuser: psycopg.Connection
) -> None:
    """An empty database is migrated although the files read columns that revision 0003 lacks."""
    change(files, "views", TODAY, READS_LATER)
    superuser.execute("CREATE DATABASE empty OWNER unlatent_owner")
    with psycopg.connect(stack.postgres.dsn("empty"), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA app AUTHORIZATION unlatent_owner")
    migrate(stack.addresses.owner_url("empty"))
    with psycopg.connect(stack.postgres.dsn("empty")) as connection:
        assert columns(connection, "me")[-1] == "readings"
    stack.database.drop("empty")


def test_a_view_loses_a_column_and_keeps_the_rights_on_it(
    owner_url: str, superuser: psycopg.Connection, files: Path
) -> None:
    """A view of another shape is made again, and a dashboard's own role still reads it."""
    superuser.execute("CREATE ROLE dashboard")
    superuser.execute("GRANT SELECT ON moderation.me TO dashboard")
    change(files, "views", TODAY, RENAMED)
    change(files, "comments", "'me.moderator'", "'me.login'")
    migrate(owner_url)
    assert columns(superuser, "me")[0] == "login"
    for role in ("dashboard", "moderator", "unlatent_app"):
        right = superuser.execute(
            "SELECT has_table_privilege(%s, 'moderation.me', 'SELECT')", (role,)
        ).fetchone()
        assert right == (True,), role
    superuser.execute("DROP OWNED BY dashboard")
    superuser.execute("DROP ROLE dashboard")


def test_a_function_changes_its_result(
    owner_url: str, superuser: psycopg.Connection, files: Path
) -> None:
    """A function of another type is made again; there are never two of one name."""
    change(files, "functions", "moderation.release(image uuid) RETURNS boolean", RELEASE)
    migrate(owner_url)
    found = superuser.execute(
        "SELECT pg_get_function_result(oid) FROM pg_proc "
        "WHERE pronamespace = 'moderation'::regnamespace AND proname = 'release'"
    ).fetchall()
    assert found == [("integer",)]


RELEASE = """moderation.release(image uuid) RETURNS integer
LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE FUNCTION moderation.release_one(image uuid) RETURNS boolean"""


def test_a_view_of_somebody_else_is_named(
    owner_url: str, superuser: psycopg.Connection, files: Path
) -> None:
    """Nothing is dropped that the product did not make; the error says what stands in the way."""
    superuser.execute("CREATE VIEW public.mine AS SELECT moderator FROM moderation.me")
    change(files, "views", TODAY, RENAMED)
    change(files, "comments", "'me.moderator'", "'me.login'")
    with pytest.raises(SchemaOutdated, match=r"view mine depends on view moderation\.me"):
        migrate(owner_url)
    assert columns(superuser, "me")[0] == "moderator"
    superuser.execute("DROP VIEW public.mine")
    migrate(owner_url)
    assert columns(superuser, "me")[0] == "login"


def test_no_function_has_a_second_form(superuser: psycopg.Connection) -> None:
    """A call by name means one function: a changed signature drops the form before it."""
    doubled = superuser.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace IN "
        "('app'::regnamespace, 'moderation'::regnamespace) GROUP BY 1 HAVING count(*) > 1"
    ).fetchall()
    assert doubled == []
