"""A moderator's login sees schema moderation, its own sources, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors, sql

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: What Postgres itself lets everybody see.
SYSTEM = ("pg_catalog", "information_schema", "pg_toast")

RELATIONS = """
    SELECT n.nspname, c.relname, c.relkind FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname <> ALL (%s) AND n.nspname NOT LIKE 'pg\\_temp%%'
      AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
"""
FUNCTIONS = """
    SELECT n.nspname, p.oid::regprocedure::text, p.proname, p.prosecdef,
           coalesce(p.proconfig::text, ''), p.pronargs
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname <> ALL (%s)
"""


def test_every_relation_outside_the_views_is_refused(
    desk: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """No table, sequence or view but those of schema moderation can be read or written."""
    someone = desk(lead=True)
    tried = 0
    for schema, name, kind in superuser.execute(RELATIONS, [list(SYSTEM)]).fetchall():
        relation = sql.Identifier(schema, name)
        readable = schema == "moderation" and kind == "v"
        statements = [
            sql.SQL("INSERT INTO {} DEFAULT VALUES"),
            sql.SQL("DELETE FROM {}"),
            sql.SQL("TRUNCATE {}"),
            sql.SQL("DROP VIEW {}") if readable else sql.SQL("ALTER TABLE {} ADD COLUMN x int"),
        ]
        if kind == "S":
            statements = [sql.SQL("SELECT * FROM {}"), sql.SQL("ALTER SEQUENCE {} RESTART")]
        elif readable:
            someone.connection.execute(sql.SQL("SELECT * FROM {} LIMIT 1").format(relation))
        else:
            statements.append(sql.SQL("SELECT * FROM {} LIMIT 1"))
        for statement in statements:
            with pytest.raises(
                (
                    errors.InsufficientPrivilege,
                    errors.WrongObjectType,
                    errors.FeatureNotSupported,
                    errors.ObjectNotInPrerequisiteState,
                )
                if readable
                else errors.InsufficientPrivilege
            ):
                someone.connection.execute(statement.format(relation))
            tried += 1
    assert tried > 100


def test_every_function_outside_the_schema_is_refused(
    desk: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """Functions of schema app cannot be executed; those of moderation can."""
    someone = desk(lead=True)
    for schema, signature, name, _, _, arguments in superuser.execute(
        FUNCTIONS, [list(SYSTEM)]
    ).fetchall():
        may = someone.value(
            "SELECT has_function_privilege(%s, %s::regprocedure::oid, 'EXECUTE')",
            someone.name,
            superuser.execute("SELECT %s::regprocedure::oid", [signature]).fetchone()[0],
        )
        assert may == (schema == "moderation"), signature
        if schema != "moderation":
            nulls = sql.SQL(", ").join([sql.SQL("NULL")] * arguments)
            with pytest.raises((errors.InsufficientPrivilege, errors.UndefinedFunction)):
                someone.connection.execute(
                    sql.SQL("SELECT {}({})").format(sql.Identifier(schema, name), nulls)
                )


def test_functions_that_act_are_armoured(superuser: psycopg.Connection) -> None:
    """Each SECURITY DEFINER function pins its search path, pg_temp last; none is PUBLIC's."""
    rows = superuser.execute(FUNCTIONS, [list(SYSTEM)]).fetchall()
    definers = [row for row in rows if row[3]]
    assert {row[2] for row in definers} >= {"claim_next", "decide", "overturn", "close_appeal"}
    for row in rows:
        assert row[4].rstrip('"}').endswith("pg_temp"), row[1]
    for row in definers:
        assert "search_path=pg_catalog, app, pg_temp" in row[4], row[1]
    public = superuser.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p, aclexplode(coalesce(p.proacl, "
        "acldefault('f', p.proowner))) a "
        "WHERE p.pronamespace::regnamespace::text IN ('app', 'moderation') AND a.grantee = 0"
    ).fetchall()
    assert public == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE moderation.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE TEMPORARY TABLE moderators (moderator text)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION moderation.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE VIEW moderation.verdicts AS SELECT 1",
        "SET ROLE unlatent_owner",
        "SET ROLE unlatent_app",
        "SET SESSION AUTHORIZATION unlatent_owner",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/hostname')",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "CREATE ROLE mine",
        "GRANT moderator TO CURRENT_USER WITH ADMIN OPTION",
        "UPDATE moderation.verdicts SET label = 'real'",
        "UPDATE moderation.reasons SET words = 'mine'",
        "CREATE EXTENSION plperl SCHEMA moderation",
        "SELECT * FROM moderation.verdicts FOR UPDATE",
        "SELECT * FROM moderation.review_queue FOR KEY SHARE",
        "DO $$ BEGIN LOCK TABLE moderation.verdicts; END $$",
        "DO $$ BEGIN LOCK TABLE moderation.verdicts IN ROW SHARE MODE; END $$",
        "SELECT pg_advisory_lock(hashtext('app.champion'))",
        "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
        "SELECT lo_create(0)",
        "DO $$ BEGIN PERFORM app.erase_rows(gen_random_uuid()); END $$",
    ],
)
def test_other_ways_out_are_shut(desk: Callable[..., Any], statement: str) -> None:
    """Roles, files, extensions, new objects and writes through views are refused."""
    someone = desk(lead=True)
    with pytest.raises(
        (
            errors.InsufficientPrivilege,
            errors.ObjectNotInPrerequisiteState,
            errors.FeatureNotSupported,
            errors.WrongObjectType,
        )
    ):
        someone.connection.execute(statement)


def test_a_search_path_of_ones_own_changes_nothing(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """Objects planted where a caller's search path looks first are never found."""
    image = scored()
    someone = desk("web")
    superuser.execute(
        psycopg.sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(
            sql.Identifier(superuser.info.dbname), sql.Identifier(someone.name)
        )
    )
    someone.connection.execute(
        """
        CREATE TEMPORARY TABLE moderators (
            moderator text, every_source boolean, sources text[], lead boolean,
            added_by text, added_at timestamptz
        );
        INSERT INTO pg_temp.moderators VALUES (SESSION_USER, true, '{}', true, '', now());
        CREATE TEMPORARY TABLE images (id uuid);
        CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'planted'; END $$;
        CREATE FUNCTION pg_temp.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE OPERATOR pg_temp.= (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.eq);
        SET search_path = pg_temp, pg_catalog, app, moderation;
        """
    )
    hidden = scored(source="forum")
    seen = [row[0] for row in someone.rows("SELECT image_id FROM moderation.review_queue")]
    assert seen == [image]
    assert [row[0] for row in someone.rows("SELECT * FROM moderation.claim_next(10)")] == [image]
    with pytest.raises(errors.NoDataFound):
        someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", hidden)
    left = desk().rows("SELECT image_id FROM moderation.claim_next(10)")
    assert left == [(hidden,)], "what one may not see one cannot hold either"
    superuser.execute(
        psycopg.sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM {}").format(
            sql.Identifier(superuser.info.dbname), sql.Identifier(someone.name)
        )
    )


@pytest.mark.parametrize(
    "text",
    ["'; DELETE FROM app.images; --", "$$ || pg_sleep(9) || $$", "%s %I", "\\'; SELECT 1", "a'b"],
)
def test_sql_in_arguments_is_only_text(
    desk: Callable[..., Any], scored: Callable[..., Any], text: str
) -> None:
    """A note or a reason full of SQL is stored or refused as it is."""
    image = scored()
    someone = desk()
    with pytest.raises(errors.InvalidParameterValue):
        someone.value("SELECT moderation.decide(%s, %s, 'real_original')", image, text)
    with pytest.raises(errors.InvalidParameterValue):
        someone.value("SELECT moderation.decide(%s, 'real', %s)", image, text)
    with pytest.raises(errors.InvalidParameterValue, match="no queue"):
        someone.rows("SELECT * FROM moderation.claim_next(5, %s)", text)
    someone.value("SELECT moderation.decide(%s, 'real', 'real_original', %s)", image, text)
    assert someone.value("SELECT note FROM moderation.decisions") == text


def test_sources_limit_every_view_and_function(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """A moderator of one source meets no other source anywhere, and cannot tell that it exists."""
    mine, other = scored(pdq=bytes(32)), scored(source="forum", pdq=bytes(32))
    lead, second = desk(lead=True), desk()
    for image in (mine, other):
        second.value("SELECT moderation.opinion(%s, 'unsure', 'unsure_mixed')", image)
        lead.value("SELECT moderation.open_appeal(%s)", image)
        lead.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
        lead.value("SELECT moderation.place_hold(%s, 'court')", image)
    limited = desk("web", lead=True)
    views = [
        row[0]
        for row in lead.rows(
            "SELECT DISTINCT table_name FROM information_schema.columns "
            "WHERE table_schema = 'moderation' AND column_name = 'source'"
        )
    ]
    assert len(views) >= 10
    # Nothing waits: both images are decided.
    quiet = {"policies", "breakers", "review_queue", "queue_summary"}
    for view in views:
        found = sql.SQL("SELECT DISTINCT source FROM {}").format(sql.Identifier("moderation", view))
        allowed = {"web", None} if view == "policies" else {"web"}
        assert {row[0] for row in limited.connection.execute(found)} <= allowed, view
        everything = {row[0] for row in lead.connection.execute(found)} - {None}
        assert view in quiet or everything == {"web", "forum"}
    assert limited.rows("SELECT * FROM moderation.similar_images(%s)", mine) == []
    assert len(lead.rows("SELECT * FROM moderation.similar_images(%s)", mine)) == 1
    scored_images = "SELECT sum(flagged + unflagged) FROM moderation.recall()"
    assert (limited.value(scored_images), lead.value(scored_images)) == (1, 2)
    for call in (
        "claim(%s)",
        "extend(%s)",
        "skip(%s, 'mine')",
        "release(%s)",
        "look_blind(%s)",
        "open_image(%s)",
        "opinion(%s, 'real', 'real_original')",
        "undo(%s, 'real', 'real_original')",
        "decide(%s, 'real', 'real_original')",
        "overturn(%s, 'real', 'real_original')",
        "open_appeal(%s)",
        "request_review(%s)",
        "similar_images(%s)",
        "same_uploader(%s)",
        "place_hold(%s, 'mine')",
        "lift_hold(%s, 'mine')",
        "request_erasure(%s, 'mine')",
    ):
        for image in (other, "00000000-0000-4000-8000-000000000000"):
            with pytest.raises(errors.NoDataFound, match="no image"):
                limited.value(f"SELECT moderation.{call}", image)
    appeal = lead.value("SELECT appeal_id FROM moderation.appeals WHERE source = 'forum'")
    with pytest.raises(errors.NoDataFound):
        limited.value("SELECT moderation.close_appeal(%s, 'dropped')", appeal)


def test_a_leaky_condition_meets_no_foreign_row(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """A condition that fails on a foreign row is never evaluated on it."""
    scored(0.95, source="forum")
    limited = desk("web")
    assert limited.rows("SELECT * FROM moderation.verdicts WHERE 1 / (score - score) > 0") == []
    with pytest.raises(errors.DivisionByZero):
        desk().rows("SELECT * FROM moderation.verdicts WHERE 1 / (score - score) > 0")


def test_a_member_without_a_row_sees_nothing(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """Membership of the role alone opens the schema and shows no image."""
    scored()
    newcomer = desk(allowed=False)
    assert newcomer.rows("SELECT * FROM moderation.verdicts") == []
    assert newcomer.rows("SELECT * FROM moderation.policies") == []
    with pytest.raises(errors.InsufficientPrivilege, match="not a moderator"):
        newcomer.rows("SELECT * FROM moderation.claim_next()")


def test_every_view_and_column_explains_itself(superuser: psycopg.Connection) -> None:
    """Each view and each column of schema moderation carries a comment."""
    silent = superuser.execute(
        "SELECT c.relname, a.attname FROM pg_class c "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
        "WHERE c.relnamespace = 'moderation'::regnamespace AND c.relkind = 'v' AND ("
        "  obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL)"
    ).fetchall()
    assert silent == []
