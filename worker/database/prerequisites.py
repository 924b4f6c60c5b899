"""What a migration needs of the server that only an administrator can give: roles and rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from detection.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

OWNER = "unlatent_owner"
#: Says who moderates what and sets policies; workers do not need that.
OPERATOR = "unlatent_operator"
#: Acts for the moderator whom it names, where people come by single sign-on.
CONSOLE = "unlatent_console"
#: The roles that `worker/bootstrap.sql` creates and that grants name.
ROLES = (OWNER, "unlatent_app", OPERATOR, CONSOLE, "moderator")

_COMMAND = "psql --file worker/bootstrap.sql {database}"

_MISSING = """
SELECT CASE
    WHEN NOT pg_has_role(CURRENT_USER, 'unlatent_owner', 'SET')
    THEN format('%I may not act for role unlatent_owner', CURRENT_USER)
    WHEN NOT has_database_privilege('unlatent_owner', current_database(), 'CREATE')
    THEN format('role unlatent_owner may not create schemas in database %I', current_database())
    WHEN to_regnamespace('app') IS NULL
    THEN format('schema app is missing in database %I', current_database())
    WHEN NOT has_schema_privilege('unlatent_owner', 'app', 'CREATE')
    THEN 'role unlatent_owner may not create tables in schema app'
END
"""


def check_prerequisites(connection: Connection) -> None:
    """Raise `SettingsError` that names a missing role or right and the command that makes it."""
    database = connection.scalar(text("SELECT current_database()"))
    present = set(connection.scalars(text("SELECT rolname FROM pg_roles")))
    absent = [role for role in ROLES if role not in present]
    missing = f"missing roles: {', '.join(absent)}" if absent else None
    missing = missing or connection.scalar(text(_MISSING))
    if missing:
        command = _COMMAND.format(database=database)
        raise SettingsError(f"{missing}: run `{command}` as a superuser (docs/deploy.md)")
