"""`migrate` names a role or a right that is missing, and the command that makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from detection.errors import SettingsError
from worker.database.engine import bootstrap, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.localstack import LocalStack

COMMAND = r"run `psql --file worker/bootstrap\.sql bare` as a superuser"


@pytest.fixture
def bare(stack: LocalStack) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a database that nobody prepared."""
    with psycopg.connect(stack.postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
    with psycopg.connect(stack.postgres.dsn("bare"), autocommit=True) as connection:
        yield connection
    stack.database.drop("bare")


def test_each_missing_right_is_named_until_none_is_missing(
    stack: LocalStack, bare: psycopg.Connection
) -> None:
    """One after the other, as an administrator would grant them by hand."""
    owner = stack.addresses.owner_url("bare")
    with pytest.raises(SettingsError, match=rf"may not create schemas in database bare: {COMMAND}"):
        migrate(owner)
    bare.execute("GRANT CREATE ON DATABASE bare TO unlatent_owner")
    with pytest.raises(SettingsError, match=rf"schema app is missing in database bare: {COMMAND}"):
        migrate(owner)
    bare.execute("CREATE SCHEMA app")
    with pytest.raises(SettingsError, match=rf"may not create tables in schema app: {COMMAND}"):
        migrate(owner)
    bare.execute("ALTER SCHEMA app OWNER TO unlatent_owner")
    migrate(owner)


def test_the_command_that_is_named_makes_what_is_missing(
    stack: LocalStack, bare: psycopg.Connection
) -> None:
    """After `bootstrap.sql`, `migrate` works."""
    bootstrap(stack.postgres.url(database="bare"))
    migrate(stack.addresses.owner_url("bare"))
    assert bare.execute("SELECT to_regclass('app.images') IS NOT NULL").fetchone() == (True,)


def test_a_missing_role_is_named(stack: LocalStack, bare: psycopg.Connection) -> None:
    """A role that grants name must be there before anything is created."""
    bare.execute("ALTER ROLE moderator RENAME TO moderator_of_another_name")
    try:
        with pytest.raises(SettingsError, match=rf"missing roles: moderator: {COMMAND}"):
            migrate(stack.addresses.owner_url("bare"))
    finally:
        bare.execute("ALTER ROLE moderator_of_another_name RENAME TO moderator")


def test_a_login_that_may_not_act_for_the_owner_is_named(stack: LocalStack) -> None:
    """The service's own login is no migrator."""
    with pytest.raises(SettingsError, match="unlatent_app may not act for role unlatent_owner"):
        migrate(stack.addresses.database_url())
