"""LISTEN/NOTIFY: wakes up on new verdicts, decisions and outbox messages.

A notification says that something happened, not all that happened: none is kept for a listener that
is away, and connections through a transaction-mode pooler get none. Read the tables, use this to
know when.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from sqlalchemy import make_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERDICTS = "unlatent_verdicts"
DECISIONS = "unlatent_decisions"
OUTBOX = "unlatent_outbox"


def listen(
    url: str, channels: Sequence[str], *, timeout_s: float
) -> Iterator[psycopg.Notify | None]:
    """Yield None once listening, then each notification, and None after every quiet time."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(address, autocommit=True)) as connection:
        for channel in channels:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield None
        while True:
            quiet = True
            for notification in connection.notifies(timeout=timeout_s, stop_after=1):
                quiet = False
                yield notification
            if quiet:
                yield None
