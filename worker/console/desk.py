"""What one moderator asks of the database, in one transaction: `moderation` and nothing else."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import exc, text

from detection.errors import UnlatentError
from worker.database.engine import LedgerUnavailable, transaction
from worker.database.refusals import read_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy import Connection, Engine


class Refused(UnlatentError):
    """The database refuses what was asked; the message and `hint` say why, in words for people."""

    def __init__(self, message: str, *, hint: str | None = None, status: int = 403) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """Who asks and what they may do; `sources` None means every source."""

    name: str
    lead: bool
    sources: tuple[str, ...] | None


class Desk:
    """A moderator's transaction: queries of the views, and calls of the functions."""

    _ME: ClassVar[str] = "SELECT moderator, every_source, sources, lead FROM moderation.me"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        row = self.first(self._ME)
        if row is None:
            raise Refused(
                "Your login may see nothing.",
                hint="An operator lets it with `unlatent moderators allow`.",
            )
        self.me = Me(
            name=row["moderator"],
            lead=row["lead"],
            sources=None if row["every_source"] else tuple(row["sources"]),
        )

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Run one query and return its rows by the names of their columns."""
        return [dict(row) for row in self._connection.execute(text(query), values).mappings()]

    def first(self, query: str, **values: object) -> dict[str, Any] | None:
        """Run one query and return its first row."""
        row = self._connection.execute(text(query), values).mappings().first()
        return None if row is None else dict(row)

    def value(self, query: str, **values: object) -> Any:
        """Run one query and return the first value of its first row."""
        return self._connection.execute(text(query), values).scalar()

    def image(self, image: UUID) -> dict[str, Any]:
        """Return what is known of an image; raises `Refused` for one that is not to be seen."""
        found = self.first("SELECT * FROM moderation.image_facts(:image)", image=image)
        if found is None:
            raise Refused(f"no image {image}", status=404)
        return found


@contextmanager
def open_desk(engine: Engine, *, caller: str | None = None) -> Iterator[Desk]:
    """Yield a desk whose work is committed on leaving; `caller` asks, where the login does not.

    Raises `Refused` with the database's words, and `LedgerUnavailable` when it is away.
    """
    try:
        with transaction(engine) as connection:
            if caller is not None:
                connection.execute(
                    text("SELECT set_config('unlatent.caller', :name, true)"), {"name": caller}
                )
            yield Desk(connection)
    except (exc.DBAPIError, LedgerUnavailable) as error:
        refusal = read_refusal(error)
        if refusal is None:
            raise
        raise Refused(refusal.message, hint=refusal.hint, status=refusal.status) from error
