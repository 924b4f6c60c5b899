"""The console's role, which acts for the moderators that it names."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.localstack import LocalStack


class Console:
    """A connection of role `unlatent_console`, as an application keeps it in its pool."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)

    @contextmanager
    def acting_for(self, name: str | None) -> Iterator[psycopg.Connection]:
        """Open a transaction in which a moderator is named, or none is."""
        with self.connection.transaction():
            if name is not None:
                self.connection.execute("SELECT set_config('unlatent.caller', %s, true)", [name])
            yield self.connection

    def rows(self, name: str | None, query: str, *values: object) -> list[Any]:
        """Run one query for a moderator and return its rows."""
        with self.acting_for(name) as connection:
            return connection.execute(query.encode(), values).fetchall()


@pytest.fixture
def console(
    stack: LocalStack, database: str, superuser: psycopg.Connection, route: Callable[[str], str]
) -> Iterator[Console]:
    """The console's connection to this test's database."""
    password = uuid4().hex
    superuser.execute(
        sql.SQL("ALTER ROLE unlatent_console PASSWORD {}").format(sql.Literal(password))
    )
    made = Console(
        psycopg.conninfo.make_conninfo(
            route(stack.postgres.dsn(database)), user="unlatent_console", password=password
        )
    )
    yield made
    made.connection.close()
