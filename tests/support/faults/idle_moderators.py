"""Moderators who call something in a transaction, leave it open, and go for lunch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    import random

#: What they have called. All of it is undone when the server ends their transaction.
ACTS = {
    "similar_images": "SELECT * FROM moderation.similar_images(%(image)s)",
    "claim_next": "SELECT * FROM moderation.claim_next(10)",
    "request_review": "SELECT moderation.request_review(%(image)s)",
    "open_appeal": "SELECT moderation.open_appeal(%(image)s)",
    "verdicts": "LISTEN unlatent_verdicts; SELECT * FROM moderation.verdicts LIMIT 1",
}


class IdleModerators:
    """One login's forgotten transactions, in the database of a superuser's address."""

    def __init__(self, superuser: str) -> None:
        self._superuser = superuser
        self._login = f"moderator_{uuid4().hex[:12]}"
        self._password = uuid4().hex
        self._sessions: list[psycopg.Connection] = []
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE moderator").format(
                    sql.Identifier(self._login), sql.Literal(self._password)
                )
            )
            connection.execute(
                "INSERT INTO app.moderators (moderator, every_source, sources, lead) "
                "VALUES (%s, true, '{}', true)",
                [self._login],
            )

    def forget(self, choice: random.Random) -> str:
        """Begin a transaction about the youngest image, leave it open, and say what it called."""
        act = choice.choice(sorted(ACTS))
        session = psycopg.connect(self._superuser, user=self._login, password=self._password)
        self._sessions.append(session)
        session.execute(psycopg.ClientCursor(session).mogrify(ACTS[act], {"image": self._image()}))
        return act

    def close(self) -> None:
        """Come back from lunch."""
        for session in self._sessions:
            session.close()

    def _image(self) -> Any:
        with psycopg.connect(self._superuser) as connection:
            found = connection.execute("SELECT id FROM app.images ORDER BY created_at DESC LIMIT 1")
            row = found.fetchone()
        return row and row[0]
