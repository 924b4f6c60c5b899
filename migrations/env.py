"""How Alembic connects, what it compares, and how it keeps racing pods apart."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from detection.errors import TransientError
from worker.database.prerequisites import check_prerequisites
from worker.database.table_base import SCHEMA, Base
from worker.ledger import tables_training  # noqa: F401 - it knows every table
from worker.moderation.sql_files import install_changed_sql
from worker.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: A migration that needs longer sets its own time-outs with SET LOCAL, and says why.
STATEMENT_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 5
POLL_S = 0.1


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


def prepare(connection: Connection) -> None:
    """Bound every statement, wait for other migrators, and own what is created."""
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    check_prerequisites(connection)
    # A superuser's migration must not leave tables that the owner cannot alter.
    connection.execute(text("SET ROLE unlatent_owner"))
    # Two pods that start together take turns; the second finds nothing left to do. It asks again
    # and again instead of waiting in one statement, whose snapshot would keep the first one's
    # CREATE INDEX CONCURRENTLY from ending.
    deadline = time.monotonic() + STATEMENT_TIMEOUT_S
    while not connection.scalar(text("SELECT pg_try_advisory_lock(hashtext('alembic'))")):
        connection.commit()
        if time.monotonic() > deadline:
            message = f"another migration has run for {STATEMENT_TIMEOUT_S} s: try again after it"
            raise TransientError(message)
        time.sleep(POLL_S)
    connection.commit()


def upgraded_to_head() -> bool:
    """Whether this was an upgrade, and not a look, and nothing newer is left to do."""
    migration = context.get_context()
    target = migration.opts.get("destination_rev")
    return target is not None and migration.get_current_heads() == tuple(context.script.get_heads())


def run() -> None:
    """Run the migrations over one connection that nothing else uses."""
    engine = create_engine(
        url(), poolclass=NullPool, connect_args={"application_name": "unlatent-migrate"}
    )
    with engine.connect() as connection:
        prepare(connection)
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
