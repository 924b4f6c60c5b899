"""Runs one SQL statement for a command and prints its rows; refusals are one line.

What a moderator may see depends on the login; an operator's commands ask as the operator's login
where the settings name one, else as the service.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from detection.errors import SettingsError
from worker.cli import context as cli
from worker.cli.common import rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import CursorResult, Engine


@contextmanager
def engine(
    context: typer.Context,
    *,
    pool_size: int | None = None,
    as_moderator: bool = False,
    as_operator: bool = False,
) -> Iterator[Engine]:
    """Yield connections, at most as many as the settings say unless `pool_size` does.

    They are the service's, or the moderator's or operator's where the settings name that login.

    What the database refuses becomes one line, without the statement.
    """
    from sqlalchemy import exc

    from worker.database.engine import LedgerUnavailable, build_engine

    postgres = cli.of(context).settings().postgres
    if pool_size is not None:
        postgres = postgres.model_copy(update={"pool_size": pool_size})
    login = postgres.moderator_url if as_moderator else postgres.operator_url
    if login is not None and (as_moderator or as_operator):
        postgres = postgres.model_copy(update={"url": login})
    built = build_engine(postgres, application_name="unlatent-cli")
    try:
        yield built
    except exc.DBAPIError as error:
        message = str(error.orig).splitlines()[0]
        hint = getattr(getattr(error.orig, "diag", None), "message_hint", None)
        if message == "permission denied for schema app":
            hint = "this is an operator's command, and asks as the service's login"
        if isinstance(error, exc.OperationalError) and getattr(error.orig, "sqlstate", "") is None:
            raise LedgerUnavailable(message) from error  # nothing that the server said
        raise SettingsError(f"{message} ({hint})" if hint else message) from error
    finally:
        built.dispose()


def print_rows(
    context: typer.Context,
    query: str,
    values: dict[str, Any] | None = None,
    *,
    format_: rows.Format,
) -> None:
    """Run one statement as a moderator and print its rows.

    Raises `SettingsError` for a login that may see nothing: an empty table would say that nothing
    is there.
    """
    from sqlalchemy import text

    with engine(context, as_moderator=True) as asked, asked.begin() as connection:
        if connection.scalar(text("SELECT NOT EXISTS (SELECT FROM moderation.me)")):
            user = asked.url.username
            raise SettingsError(
                f"{user} is not a moderator: set UNLATENT_POSTGRES__MODERATOR_URL to the login of "
                "one, whom an operator adds with `unlatent moderators allow`; on a local stack, "
                "`unlatent up` makes one"
            )
        _print(connection.execute(text(query), values or {}), format_)


def print_operator_rows(
    context: typer.Context, query: str, *, format_: rows.Format, **values: object
) -> None:
    """Run one statement as the operator and print its rows."""
    from sqlalchemy import text

    with engine(context, as_operator=True) as asked, asked.begin() as connection:
        _print(connection.execute(text(query), values), format_)


def _print(result: CursorResult[Any], format_: rows.Format) -> None:
    columns = list(result.keys())
    rows.print_rows([dict(row) for row in result.mappings()], columns, format_)
