"""Connections to Postgres, transactions, and migrations."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import errors
from sqlalchemy import create_engine, event, exc

from detection.errors import SettingsError, TransientError, UnlatentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection, Engine, ExceptionContext

    from worker.settings import Postgres

BOOTSTRAP_SQL = Path(__file__).parents[1] / "bootstrap.sql"
MIGRATIONS = Path(__file__).parents[2] / "migrations"

#: What a database's URL looks like.
LIKE = "postgresql+psycopg://user:password@host:5432/database"
#: What a statement of this release meets in a database that was migrated for an earlier one.
_MISSING = (
    errors.InvalidSchemaName,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
)
#: The class of SQLSTATE (PostgreSQL's manual, appendix A) of what exceeds a limit of the server.
_TOO_MUCH = "54"


class LedgerUnavailable(TransientError):
    """The ledger's database is away or did not answer in time."""


class SchemaOutdated(UnlatentError):
    """The database's schema is older than this release: run `unlatent migrate`."""


def build_engine(postgres: Postgres, *, application_name: str = "unlatent") -> Engine:
    """Build the pool of one process; call it after fork or spawn, never before.

    Time-outs are the server's: a statement or a lock that takes longer fails, and the ledger
    reports `LedgerUnavailable`.
    """
    return connect(
        postgres.url.get_secret_value(),
        pool_size=postgres.pool_size,
        statement_timeout_s=postgres.statement_timeout_s,
        lock_timeout_s=postgres.lock_timeout_s,
        application_name=application_name,
    )


def connect(
    url: str,
    *,
    pool_size: int = 2,
    statement_timeout_s: float = 15.0,
    lock_timeout_s: float = 5.0,
    application_name: str = "unlatent",
) -> Engine:
    """Build a pool for a URL; `build_engine` is the same from the settings.

    A statement that asks for what the schema lacks raises `SchemaOutdated`; raises `SettingsError`
    for what is no URL.
    """
    timeouts = (
        f"-c statement_timeout={round(statement_timeout_s * 1000)} "
        f"-c lock_timeout={round(lock_timeout_s * 1000)} "
        # A client that stalls inside a transaction must not keep its row locks.
        f"-c idle_in_transaction_session_timeout={round(statement_timeout_s * 1000)}"
    )
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,  # hides a restart of Postgres from idle connections
            pool_size=pool_size,
            max_overflow=2,
            pool_timeout=10,
            pool_recycle=1800,
            connect_args={
                "connect_timeout": 5,
                "application_name": application_name,
                "options": timeouts,
            },
        )
    except exc.ArgumentError as error:
        raise SettingsError(f"the database's URL is none: {error}; it is like {LIKE}") from error
    event.listen(engine, "handle_error", _outdated)
    return engine


def _outdated(context: ExceptionContext) -> SchemaOutdated | None:
    """Put in words what is raised instead of an error that an old schema explains."""
    error = context.original_exception
    if not isinstance(error, _MISSING):
        return None
    missing = str(error).partition("\n")[0]
    return SchemaOutdated(f"{(SchemaOutdated.__doc__ or '').removesuffix('.')} ({missing})")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Commit on leaving; the database's absence, in whatever form, is a `LedgerUnavailable`.

    What a statement itself is to blame for is raised as it is: another try would meet it again.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except exc.TimeoutError as error:  # the pool's
        raise LedgerUnavailable(f"the ledger's database is away: {error}") from error
    except exc.DBAPIError as error:
        if not _is_away(error):
            raise
        raise LedgerUnavailable(f"the ledger's database is away: {error.orig}") from error


def _is_away(error: exc.DBAPIError) -> bool:
    # InternalError: a fail-over left us on a read-only server.
    if not isinstance(error, (exc.OperationalError, exc.InterfaceError, exc.InternalError)):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        # Not the server's word: the connection broke, or there was none to send a statement on.
        return error.connection_invalidated or error.statement is None
    return not state.startswith(_TOO_MUCH)


def blames_values(error: Exception) -> bool:
    """Say whether the database refused a statement for the values that were to be stored."""
    if isinstance(error, (exc.DataError, exc.IntegrityError)):
        return True
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, exc.DBAPIError) else None
    return state is not None and state.startswith(_TOO_MUCH)


def alembic_config(url: str) -> Config:
    """Point Alembic at the migrations that ship with the package and at a database."""
    # Alembic belongs to the extra "service"; producers that only submit do not install it.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrate(url: str, revision: str = "head") -> bool:
    """Bring the schema at `url` (the owner's or a superuser's) up to `revision`.

    Returns False for the schema of a newer release, which is left as it is: migrations only add, so
    that this release works on it while one goes back.
    """
    from alembic import command
    from alembic.script.revision import ResolutionError
    from alembic.util import CommandError

    try:
        command.upgrade(alembic_config(url), revision)
    except CommandError as error:
        unknown = error.__cause__
        if isinstance(unknown, ResolutionError) and unknown.argument != revision:
            return False
        raise
    return True


def downgrade(url: str, revision: str) -> None:
    """Take the schema at `url` back to `revision`; "base" drops every table."""
    from alembic import command

    command.downgrade(alembic_config(url), revision)


def bootstrap(superuser_url: str) -> None:
    """Create roles and schema in the database at `superuser_url`; harmless when repeated."""
    engine = connect(superuser_url, application_name="unlatent-bootstrap")
    with engine.begin() as connection:
        # Several statements at once need the driver's simple protocol, without parameters.
        connection.connection.cursor().execute(BOOTSTRAP_SQL.read_text())
    engine.dispose()
