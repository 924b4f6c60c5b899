"""The database of a local stack: its roles with their passwords, copies of it, and their end."""

from __future__ import annotations

import contextlib
import importlib.resources
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.localstack.identity import APP, DATABASE, MODERATOR, OPERATOR, OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from worker.localstack.identity import Identity
    from worker.localstack.servers import PostgresServer


@dataclass(frozen=True, slots=True)
class LocalDatabase:
    """What the superuser of a running server does for the service's database."""

    server: PostgresServer
    identity: Identity

    def make(self) -> None:
        """Create the database and its roles where they are missing, and set the passwords."""
        with self._superuser() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
        with self._superuser(DATABASE) as cursor:
            cursor.execute(_bootstrap_sql())
            cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (MODERATOR,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE ROLE {MODERATOR} IN ROLE moderator")
            for role in (MODERATOR, OPERATOR, OWNER, APP):
                password = self.identity.password(role)
                cursor.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{password}'")
            cursor.execute(f"ALTER DATABASE {DATABASE} OWNER TO {OWNER}")

    def clone(self, template: str, name: str) -> None:
        """Copy a database that nobody is connected to, file by file, with its rights and limits."""
        with self._superuser() as cursor:
            cursor.execute(
                f'CREATE DATABASE "{name}" OWNER {OWNER} TEMPLATE "{template}" STRATEGY FILE_COPY'
            )
        # Who may connect, and what is set for a database, stay behind with the one copied.
        with self._superuser(name) as cursor:
            cursor.execute(_bootstrap_sql())

    def drop(self, name: str) -> None:
        """Drop a database and whoever is connected to it."""
        with self._superuser() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @contextlib.contextmanager
    def _superuser(self, database: str = "postgres") -> Iterator[psycopg.Cursor]:
        import psycopg

        with psycopg.connect(self.server.dsn(database), autocommit=True) as connection:
            yield connection.cursor()


def _bootstrap_sql() -> str:
    return importlib.resources.files("worker").joinpath("bootstrap.sql").read_text()
