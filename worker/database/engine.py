"""Connections to Postgres, transactions, and migrations."""

from __future__ import annotations

import re
import select
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import errors
from sqlalchemy import create_engine, event, exc

from detection.errors import SettingsError, TransientError, UnlatentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.config import Config
    from sqlalchemy import Connection, Engine, ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from worker.settings import Postgres

_T = TypeVar("_T")

BOOTSTRAP_SQL = Path(__file__).parents[1] / "bootstrap.sql"
MIGRATIONS = Path(__file__).parents[2] / "migrations"

#: How often a statement runs before it is prepared, on a direct connection.
PREPARE_THRESHOLD = 5
#: A connection that was used within so many seconds is tried before it is used again only if the
#: server has said something.
_TRUSTED_S = 1.0
#: Probes without an answer after which the kernel gives a connection up.
_UNANSWERED_PROBES = 2
#: What a database's URL looks like.
LIKE = "postgresql+psycopg://user:password@host:5432/database"
#: What a statement of this release meets in a database that was migrated for an earlier one.
_MISSING = (
    errors.InvalidSchemaName,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
)
#: How often a migration comes back for locks that it did not get beside a service that works on.
_MIGRATION_TRIES = 10
#: The class of SQLSTATE (PostgreSQL's manual, appendix A) of what exceeds a limit of the server.
_TOO_MUCH = "54"
#: What a statement meets that was prepared on another of a pooler's connections to the server.
_PREPARED_ELSEWHERE = re.compile(
    r'prepared statement "\w+" (already exists|does not exist)'
    r"|bind message supplies \d+ parameters, but prepared statement"
)


class LedgerUnavailable(TransientError):
    """The ledger's database is away or did not answer in time."""


class SchemaOutdated(UnlatentError):
    """The database's schema is older than this release: run `unlatent migrate`."""


def build_engine(postgres: Postgres, *, application_name: str = "unlatent") -> Engine:
    """Build the pool of one process; call it after fork or spawn, never before.

    Time-outs are the server's: a statement or a lock that takes longer fails, and the ledger
    reports `LedgerUnavailable`. Behind a pooler they bind transactions, not connections: in
    transaction mode it gives every transaction another connection to the server. A network that
    delivers nothing more ends a connection after about the time that a statement may take.
    """
    return connect(
        postgres.url.get_secret_value(),
        pool_size=postgres.pool_size,
        statement_timeout_s=postgres.statement_timeout_s,
        lock_timeout_s=postgres.lock_timeout_s,
        prepare_threshold=postgres.prepare_threshold,
        application_name=application_name,
    )


def connect(
    url: str,
    *,
    pool_size: int = 2,
    statement_timeout_s: float = 15.0,
    lock_timeout_s: float = 5.0,
    prepare_threshold: int | None = None,
    application_name: str = "unlatent",
) -> Engine:
    """Build a pool for a URL; `build_engine` is the same from the settings.

    A statement that was run `prepare_threshold` times is prepared on the server; 0 prepares none;
    None is `PREPARE_THRESHOLD` on a direct connection and 0 behind a pooler. A statement that asks
    for what the schema lacks raises `SchemaOutdated`; raises `SettingsError` for what is no URL,
    and for what a pooler does not let through.
    """
    timeouts_s = {
        "statement_timeout": statement_timeout_s,
        "lock_timeout": lock_timeout_s,
        # A client that stalls inside a transaction must not keep its row locks.
        "idle_in_transaction_session_timeout": statement_timeout_s,
    }
    # One statement, and so one round trip, for all of them: SET LOCAL would take three.
    limit = "SELECT " + ", ".join(
        f"set_config('{name}', '{round(value * 1000)}', {{local}})"
        for name, value in timeouts_s.items()
    )
    try:
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=2,
            pool_timeout=10,
            pool_recycle=1800,
            connect_args={
                "connect_timeout": 5,
                "application_name": application_name,
                **_network_limits(statement_timeout_s),
            },
        )
    except exc.ArgumentError as error:
        raise SettingsError(f"the database's URL is none: {error}; it is like {LIKE}") from error
    event.listen(engine, "connect", partial(_set_up, limit, prepare_threshold))
    event.listen(engine, "begin", partial(_limit_transaction, limit))
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _try_doubtful)
    event.listen(engine, "handle_error", _explained)
    return engine


def _network_limits(statement_timeout_s: float) -> dict[str, int]:
    """Return libpq's options that end a connection whose other end is silent for that long.

    The server cannot end a statement for a client that its answer never reaches: without these, a
    thread waits for as long as the kernel tries, which is hours.
    """
    # Less than a second looks dead on any slow network; the kernel's probes take 32,767 s at most.
    longest_s = min(max(statement_timeout_s, 1.0), 3600.0)
    every_s = max(1, round(longest_s / (_UNANSWERED_PROBES + 1)))
    return {
        # While an answer is awaited: probes, the first one after as long as lies between two.
        "keepalives": 1,
        "keepalives_idle": every_s,
        "keepalives_interval": every_s,
        "keepalives_count": _UNANSWERED_PROBES,
        # While what was sent is not acknowledged, when no probes are sent.
        "tcp_user_timeout": round(longest_s * 1000),
    }


def _set_up(
    limit: str, wanted: int | None, connection: psycopg.Connection, record: ConnectionPoolEntry
) -> None:
    """Find out what a new connection leads to, and set what then holds for all of its time."""
    try:
        # A pooler makes up the process id that it tells its clients, as there is no such process.
        answer = connection.execute("SELECT pg_backend_pid()").fetchone()
        direct = answer == (connection.info.backend_pid,)
        if direct:
            connection.execute(limit.format(local="false"))
        connection.commit()
    except psycopg.Error:
        connection.close()  # the pool has not heard of it yet
        raise
    record.info["direct"] = direct
    if wanted is None:
        wanted = PREPARE_THRESHOLD if direct else 0
    connection.prepare_threshold = wanted or None  # the driver's 0 prepares at once


def _limit_transaction(limit: str, connection: Connection) -> None:
    if not connection.info["direct"]:
        connection.exec_driver_sql(limit.format(local="true")).close()


def _note_use(_connection: psycopg.Connection | None, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _try_doubtful(
    connection: psycopg.Connection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Hide a restart of Postgres from waiting connections: the pool then opens new ones.

    Tried is one that has waited for long, and one to which the server has said something
    meanwhile. SQLAlchemy's own `pool_pre_ping` would add a transaction to each one, however busy
    the pool is.
    """
    waited_s = time.monotonic() - record.info.get("used_at", float("inf"))
    try:
        if waited_s > _TRUSTED_S or _was_told_something(connection):
            connection.execute("SELECT 1")
            connection.rollback()
    except psycopg.Error as error:
        raise exc.InvalidatePoolError from error


def _was_told_something(connection: psycopg.Connection) -> bool:
    """Whether bytes of the server wait to be read, as a server sends when it ends a connection."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _explained(context: ExceptionContext) -> UnlatentError | None:
    """Translate errors that an old schema or a pooler explains; None for any other error."""
    error = context.original_exception
    said = str(error).partition("\n")[0]
    if isinstance(error, _MISSING):
        return SchemaOutdated(f"{(SchemaOutdated.__doc__ or '').removesuffix('.')} ({said})")
    if _PREPARED_ELSEWHERE.search(said):
        return SettingsError(
            "the pooler before Postgres gives each transaction another connection, which knows no "
            "statement prepared on the last one: set UNLATENT_POSTGRES__PREPARE_THRESHOLD to 0, or "
            f"the pooler's mode to session ({said})"
        )
    if "unsupported startup parameter" in said:
        return SettingsError(
            "the pooler before Postgres refuses a parameter of the database's URL: take it out, or "
            f"name it in the pooler's ignore_startup_parameters ({said})"
        )
    return None


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
    return change_schema(lambda: _upgrade(url, revision))


def change_schema(change: Callable[[], _T]) -> _T:
    """Run a change of the schema; again, if it met a lock of the service at work, or crossed one.

    So a change is one transaction, after statements that may be repeated.
    """
    for _ in range(_MIGRATION_TRIES - 1):
        try:
            return change()
        except exc.OperationalError as error:
            if not isinstance(error.orig, (errors.DeadlockDetected, errors.LockNotAvailable)):
                raise
    return change()


def _upgrade(url: str, revision: str) -> bool:
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
    except (errors.DeadlockDetected, errors.LockNotAvailable) as error:
        # Views, functions and triggers are installed over the driver itself.
        raise exc.OperationalError("the SQL files of schema moderation", None, error) from error
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
