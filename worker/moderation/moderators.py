"""Who may moderate what: a moderator is a name, whose row says the sources that they see.

The name is that of a login, a role of the cluster, or what single sign-on calls somebody who has no
login and comes through the console. Whoever has both under one name is one moderator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert

from detection.errors import SettingsError
from worker.ledger.tables_moderation import Moderator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrant:
    """What one moderator may see and do; `sources` None means every source."""

    moderator: str
    sources: tuple[str, ...] | None
    lead: bool


def allow(
    engine: Engine,
    name: str,
    *,
    sources: Sequence[str] | None,
    lead: bool = False,
    sso: bool = False,
) -> None:
    """Let an existing login moderate; called again, replaces what it was allowed before.

    With `sso` also a name without a login, exactly as the proxy of the console sends it. Raises
    `SettingsError` when the cluster has a role of the name that is no member of `moderator`, and
    without `sso` when it has none.
    """
    values = {"every_source": sources is None, "sources": list(sources or ()), "lead": lead}
    if name != name.strip() or not name:
        raise SettingsError(f"{name!r} is no moderator's name: take away the blanks around it")
    with engine.begin() as connection:
        member = connection.scalar(
            text("SELECT pg_has_role(oid, 'moderator', 'USAGE') FROM pg_roles WHERE rolname = :n"),
            {"n": name},
        )
        if member is False and sso:
            raise SettingsError(
                f"{name} is a role of the database, and not a moderator's: its login would get "
                "what this name is allowed"
            )
        if not member and not sso:
            message = (
                f"{name} is no login of a moderator; a superuser makes one with: "
                f"CREATE ROLE \"{name}\" LOGIN PASSWORD '…' IN ROLE moderator"
            )
            raise SettingsError(message)
        added = insert(Moderator).values(moderator=name, **values)
        connection.execute(added.on_conflict_do_update(index_elements=["moderator"], set_=values))


def disallow(engine: Engine, name: str) -> bool:
    """Let a moderator see nothing any more; what they decided stays. Return whether it was one."""
    with engine.begin() as connection:
        removed = connection.execute(delete(Moderator).where(Moderator.moderator == name))
    return removed.rowcount > 0


def idling_is_limited(engine: Engine) -> bool:
    """Whether new logins of this database may not idle in a transaction for ever.

    Postgres lets no login set that for another one, and members of `moderator` do not inherit its
    settings: the database's own must say it, which `worker/bootstrap.sql` sees to.
    """
    query = "SELECT reset_val FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'"
    with engine.connect() as connection:
        return bool(connection.scalar(text(query)) != "0")


def source_grants(engine: Engine) -> list[SourceGrant]:
    """List everybody who may moderate."""
    with engine.connect() as connection:
        rows = connection.execute(select(Moderator.__table__).order_by(Moderator.moderator)).all()
    return [
        SourceGrant(
            moderator=row.moderator,
            sources=None if row.every_source else tuple(row.sources),
            lead=row.lead,
        )
        for row in rows
    ]
