"""Installs the SQL files of schema `moderation`: the step that repeats after every upgrade.

The files may read every column of the newest revision, so no revision installs them. The comment on
the schema keeps the SHA-256 of what is installed: it comes and goes with the views, and with dumps.
A function that the last release calls stays for one release after the last code that needs it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import errors, sql

from detection.score import DISTANCE_WORDS, NOT_JUDGED
from worker.database.engine import SchemaOutdated
from worker.database.prerequisites import CONSOLE

if TYPE_CHECKING:
    from psycopg import Connection

SQL = Path(__file__).with_name("sql")

#: In the order in which they need each other.
FILES = (
    "rules",
    "counts",
    "pruning",
    "statistics",
    "views",
    "functions",
    "decisions",
    "appeals",
    "images",
    "desk",
    "serving",
    "comments",
)

#: Who asks. The console's role acts for the moderator whom it names in a setting of the
#: transaction, which is empty, not NULL, after the first transaction that set it. Whoever reads a
#: view needs the right to every function in it: views write this out.
_CALLER = (
    f"(CASE WHEN SESSION_USER = '{CONSOLE}' "
    "THEN nullif(current_setting('unlatent.caller', true), '') ELSE SESSION_USER END)"
)

#: Subqueries that Postgres runs once a statement: a function would be called for every row.
_VISIBLE = (
    "((SELECT m.every_source FROM app.moderators m WHERE m.moderator = CALLER)"
    r" OR \1 = ANY ((SELECT m.sources FROM app.moderators m WHERE m.moderator = CALLER)"
    "::text[]))"
)

#: Bounds rise within a label: the last one that is reached holds.
_DISTANCE_WORDS = " ".join(
    (
        f"CASE WHEN inapplicable IS NOT NULL THEN '{NOT_JUDGED}'",
        *(
            f"WHEN label = '{label}' AND distance >= '{least}' THEN '{words}'"
            for label, least, words in reversed(DISTANCE_WORDS)
        ),
        "END",
    )
)

#: What CREATE OR REPLACE refuses: columns taken away or renamed, results of another type.
_CHANGED_SHAPE = (errors.InvalidTableDefinition, errors.InvalidFunctionDefinition)


def read_sql(name: str) -> str:
    """Return one SQL file with caller, limit by source and words for distances written out."""
    text = (SQL / f"{name}.sql").read_text().replace("DISTANCE_WORDS", _DISTANCE_WORDS)
    text = re.sub(r"VISIBLE\(([\w.]+)\)", _VISIBLE, text)
    return re.sub(r"\bCALLER\b", _CALLER, text)


def sql_digest() -> str:
    """Return the SHA-256 of all that `install_sql` runs, as hexadecimal digits."""
    statements = (*map(read_sql, FILES), _SHUT, _GRANT, _GRANT_SERVICE)
    return hashlib.sha256("\0".join(statements).encode()).hexdigest()


def install_changed_sql(connection: Connection) -> bool:
    """Install the SQL files unless the database has these already; return whether it did.

    `connection` is the owner's, in a transaction that the caller commits. Raises `SchemaOutdated`
    where views of somebody else stand on views that must go.
    """
    found = connection.execute(
        "SELECT obj_description(to_regnamespace('moderation'), 'pg_namespace')"
    ).fetchone()
    mark = f"Views and functions of unlatent; sha256 {sql_digest()}"
    if found == (mark,):
        return False
    try:
        with connection.transaction():
            _run_files(connection)
    except _CHANGED_SHAPE:
        _replace(connection)
    for role in ("moderator", "unlatent_app", CONSOLE):
        connection.execute(_GRANT.replace("ROLE", role).encode())
    connection.execute(_SHUT)
    connection.execute(_GRANT_SERVICE)
    connection.execute(sql.SQL("COMMENT ON SCHEMA moderation IS {}").format(mark))
    return True


def _run_files(connection: Connection) -> None:
    for name in FILES:
        # Several statements at once need the simple protocol, which takes no parameters.
        connection.execute(read_sql(name).encode())


def _replace(connection: Connection) -> None:
    """Drop the views and functions of the schema, run the files, and give back others' rights."""
    rights = connection.execute(_RIGHTS).fetchall()
    try:
        connection.execute(_DROP)
    except errors.DependentObjectsStillExist as error:
        message = (
            "views of your own stand on views of schema moderation that change: "
            f"{error.diag.message_detail}. Drop yours, run `unlatent migrate`, make them again."
        )
        raise SchemaOutdated(message) from error
    _run_files(connection)
    for grantee, privilege, view in rights:
        if connection.execute(_VIEW_EXISTS, (view,)).fetchone():
            statement = sql.SQL("GRANT {} ON {} TO {}").format(
                sql.SQL(privilege), sql.Identifier("moderation", view), sql.Identifier(grantee)
            )
            connection.execute(statement)


#: What people granted on the views to roles of their own, a dashboard's login for example.
_RIGHTS = """
SELECT pg_get_userbyid(r.grantee), r.privilege_type, c.relname
FROM pg_class c, aclexplode(c.relacl) r
WHERE c.relnamespace = 'moderation'::regnamespace AND c.relkind = 'v'
    AND r.grantee NOT IN (0, c.relowner)
"""

_VIEW_EXISTS = """
SELECT true FROM pg_class
WHERE relnamespace = 'moderation'::regnamespace AND relname = %s
"""

#: Views call functions, and functions return rows of views: what nothing needs goes first.
_DROP = """
DO $$
DECLARE
    ours record;
    dropped boolean := true;
    in_the_way text;
BEGIN
    WHILE dropped LOOP
        dropped := false;
        in_the_way := NULL;
        FOR ours IN
            SELECT 'VIEW' AS kind, oid::regclass::text AS name
            FROM pg_class WHERE relnamespace = 'moderation'::regnamespace AND relkind = 'v'
            UNION ALL
            SELECT 'FUNCTION', oid::regprocedure::text
            FROM pg_proc
            WHERE pronamespace IN ('app'::regnamespace, 'moderation'::regnamespace)
                -- Triggers hang on these, and their shape never changes.
                AND prorettype <> 'trigger'::regtype
        LOOP
            BEGIN
                EXECUTE format('DROP %s %s', ours.kind, ours.name);
                dropped := true;
            EXCEPTION WHEN dependent_objects_still_exist THEN
                GET STACKED DIAGNOSTICS in_the_way = PG_EXCEPTION_DETAIL;
            END;
        END LOOP;
    END LOOP;
    IF in_the_way IS NOT NULL THEN
        RAISE dependent_objects_still_exist USING DETAIL = in_the_way;
    END IF;
END
$$
"""

_SHUT = "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA app, moderation FROM PUBLIC"

_GRANT = """
GRANT USAGE ON SCHEMA moderation TO ROLE;
GRANT SELECT ON ALL TABLES IN SCHEMA moderation TO ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA moderation TO ROLE;
"""

_GRANT_SERVICE = """
GRANT EXECUTE ON FUNCTION
    app.policy_of(text),
    app.tier_of(float8, text, float8, float8, float8),
    app.check_breakers(),
    app.keep_counts(),
    app.prune(text, integer),
    app.appeal_by_source(uuid, text, text),
    app.report_by_source(uuid, text, text),
    app.note_request(text, text, bytea),
    app.note_request_image(text, text, uuid),
    app.notify(text, text),
    app.rows_of_object(uuid),
    app.is_held(uuid),
    app.erase_rows(uuid)
TO unlatent_app;
GRANT SELECT ON app.verdict_counts TO unlatent_app;
-- The next release takes this from unlatent_app.
GRANT EXECUTE ON FUNCTION app.resume_flagging(text, text, text) TO unlatent_app, unlatent_operator;
"""
