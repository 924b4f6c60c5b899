"""How Alembic connects, what it compares, and how it keeps racing pods apart."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import NullPool, create_engine, event

from detection.errors import TransientError
from worker.database.prerequisites import check_prerequisites
from worker.database.table_base import SCHEMA, Base
from worker.ledger import tables_training  # noqa: F401 - it knows every table
from worker.moderation.sql_files import install_changed_sql
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

#: A migration that needs longer sets its own time-outs with SET LOCAL, and says why.
STATEMENT_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 5
POLL_S = 0.2
TAKE_TURN = "SELECT pg_try_advisory_xact_lock(hashtext('alembic'))"


def url() -> str:
    """Return the URL that the caller passed, else the owner's URL of the settings."""
    passed: str | None = context.config.attributes.get("url")
    if passed is not None:
        return passed
    postgres = Settings().postgres
    return (postgres.owner_url or postgres.url).get_secret_value()


def compared(name: str | None, kind: str, _parents: object) -> bool:
    """Compare the tables of our schema only."""
    return kind != "schema" or name == SCHEMA


def settle(connection: Connection) -> None:
    """Bound every statement, and own what is created: a superuser's tables were not the owner's.

    What is set holds for a transaction, because a pooler may run the next on another connection.
    """
    connection.exec_driver_sql("SET LOCAL ROLE unlatent_owner")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")


@contextmanager
def turn(engine: Engine) -> Iterator[None]:
    """Wait for pods that migrate already; they find nothing left to do, or this one does.

    A transaction of its own holds the lock from the first migration to the last. It asks again and
    again instead of waiting in one statement, whose snapshot would keep CREATE INDEX CONCURRENTLY
    of the other pod from ending.
    """
    deadline = time.monotonic() + STATEMENT_TIMEOUT_S
    with engine.connect() as connection:
        while True:
            connection.exec_driver_sql(
                "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN "
                "('idle_in_transaction_session_timeout', 'transaction_timeout')"
            )
            asked = connection.exec_driver_sql(
                "SELECT pg_try_advisory_xact_lock(hashtext('alembic'))"
            )
            if asked.scalar():
                break
            connection.rollback()
            if time.monotonic() > deadline:
                message = (
                    f"another migration has run for {STATEMENT_TIMEOUT_S} s: try again after it"
                )
                raise TransientError(message)
            time.sleep(POLL_S)
        yield


def upgraded_to_head() -> bool:
    """Whether this was an upgrade, and not a look, and nothing newer is left to do."""
    migration = context.get_context()
    target = migration.opts.get("destination_rev")
    return target is not None and migration.get_current_heads() == tuple(context.script.get_heads())


def run() -> None:
    """Run the migrations over one connection, while another one keeps other migrators waiting."""
    engine = create_engine(
        url(),
        poolclass=NullPool,
        connect_args={"application_name": "unlatent-migrate", "prepare_threshold": None},
    )
    with engine.connect() as connection:
        check_prerequisites(connection)
    event.listen(engine, "begin", settle)
    with turn(engine), engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            version_table_schema=SCHEMA,
            include_schemas=True,
            include_name=compared,
            compare_server_default=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        if upgraded_to_head():
            install_changed_sql(connection.connection.driver_connection)
            connection.commit()


run()
