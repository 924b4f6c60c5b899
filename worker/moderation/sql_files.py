"""Installs the SQL files of schema `moderation` into a database; migrations call it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

SQL = Path(__file__).with_name("sql")

#: In the order in which they need each other.
FILES = ("rules", "statistics", "views", "functions", "comments")

#: Subqueries that Postgres runs once a statement: a function would be called for every row.
_VISIBLE = (
    "((SELECT m.every_source FROM app.moderators m WHERE m.moderator = SESSION_USER)"
    r" OR \1 = ANY ((SELECT m.sources FROM app.moderators m WHERE m.moderator = SESSION_USER)"
    "::text[]))"
)


def read_sql(name: str) -> str:
    """Return one SQL file with the limit by source written out."""
    return re.sub(r"VISIBLE\(([\w.]+)\)", _VISIBLE, (SQL / f"{name}.sql").read_text())


def install_sql(connection: Connection) -> None:
    """Create or replace everything in schema `moderation`, and grant it to `moderator`."""
    cursor = connection.connection.cursor()
    for name in FILES:
        # Several statements at once need the driver's simple protocol, without parameters.
        cursor.execute(read_sql(name))
    cursor.execute(_SHUT)
    for role in ("moderator", "unlatent_app"):
        if connection.scalar(text("SELECT to_regrole(:role) IS NOT NULL"), {"role": role}):
            cursor.execute(_GRANT.replace("ROLE", role))
    if connection.scalar(text("SELECT to_regrole('unlatent_app') IS NOT NULL")):
        cursor.execute(_GRANT_SERVICE)


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
    app.resume_flagging(text, text, text),
    app.erase_rows(uuid)
TO unlatent_app;
"""
