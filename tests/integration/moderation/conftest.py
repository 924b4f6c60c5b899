"""Moderators with logins of their own, and images that a detector has scored."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.waiting import eventually
from worker.ledger.interface import ImageFacts, Lease, Role, Upload, Verdict
from worker.ledger.postgres import PostgresLedger
from worker.moderation.moderators import allow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from detection.score import TileLogit
    from worker.localstack import LocalStack
    from worker.settings import Settings

#: A hash with gradients enough to mean something.
PDQ = bytes(range(32))


class Desk:
    """One moderator's connection."""

    def __init__(self, name: str, password: str, address: str) -> None:
        self.name = name
        self.dsn = psycopg.conninfo.make_conninfo(address, user=name, password=password)
        self.connection = psycopg.connect(self.dsn, autocommit=True)

    def rows(self, query: str, *values: object) -> list[Any]:
        """Run one query and return its rows."""
        return self.connection.execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """Run one query and return its first value."""
        row = self.connection.execute(query, values).fetchone()
        return None if row is None else row[0]


MakeDesk = "Callable[..., Desk]"


@pytest.fixture
def superuser(stack: LocalStack, database: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection to this test's database."""
    with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as connection:
        yield connection


@pytest.fixture
def desk(
    stack: LocalStack,
    database: str,
    superuser: psycopg.Connection,
    engine: Engine,
    route: Callable[[str], str],
) -> Iterator[Callable[..., Desk]]:
    """Make moderators: `desk("web", lead=True)`; without sources they see every one."""
    made: list[Desk] = []

    def make(*sources: str, lead: bool = False, allowed: bool = True) -> Desk:
        name, password = f"moderator_{uuid4().hex[:12]}", uuid4().hex
        superuser.execute(
            psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE moderator").format(
                psycopg.sql.Identifier(name), psycopg.sql.Literal(password)
            )
        )
        if allowed:
            allow(engine, name, sources=sources or None, lead=lead)
        made.append(Desk(name, password, route(stack.postgres.dsn(database))))
        return made[-1]

    yield make
    for one in made:
        one.connection.close()
        # A pooler would keep them.
        superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [one.name]
        )

        def gone(name: str = one.name) -> bool:
            """Whether the server has ended the sessions, whose temporary objects bind the role."""
            query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
            return superuser.execute(query, [name]).fetchone() == (0,)

        eventually(gone, what=f"the end of {one.name}'s sessions")
        superuser.execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(one.name)))


@pytest.fixture
def scored(
    engine: Engine, settings: Settings, superuser: psycopg.Connection
) -> Callable[..., UUID]:
    """Take an upload through the ledger to a champion's verdict and return its id.

    The first policy's audit draws one unflagged image of two hundred by its random id: not here,
    where a test that wants an audit enacts a policy of its own.
    """
    ledger = PostgresLedger(engine)
    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")  # policies only grow
        superuser.execute("UPDATE app.policies SET audit_share = 0")

    def score(
        probability: float = 0.97,
        *,
        source: str = "web",
        label: str | None = None,
        sha256: str | None = None,
        pdq: bytes | None = None,
        evidence_uri: str | None = None,
        key: str | None = None,
        etag: str = "e1",
        version_id: str | None = None,
        uploader: str | None = "anna@example.com",
        distance: float | None = None,
        outside: str | None = None,
        tiles: tuple[TileLogit, ...] = (),
    ) -> UUID:
        upload = Upload(
            bucket=settings.s3.buckets[0],
            key=key or f"{uuid4().hex}.jpg",
            etag=etag,
            version_id=version_id,
            source=source,
            uploader=uploader,
        )
        image_id = ledger.register([upload])[0].image_id
        lease = ledger.lease(image_id, worker="w", duration=timedelta(minutes=2))
        assert isinstance(lease, Lease)
        said = label or ("generated" if probability >= 0.9 else "real")
        verdict = verdict_of(lease, probability, said, sha256, pdq, evidence_uri)
        ledger.record([replace(verdict, distance=distance, outside=outside, tiles=tiles)])
        return image_id

    return score


def verdict_of(
    lease: Lease,
    probability: float,
    label: str,
    sha256: str | None,
    pdq: bytes | None,
    evidence_uri: str | None,
    *,
    model_version: str = "model-1",
    role: Role = Role.CHAMPION,
) -> Verdict:
    """Return what a detector would have said of a leased image."""
    return Verdict(
        image_id=lease.image_id,
        lease_id=lease.lease_id,
        facts=ImageFacts(
            sha256=sha256 or uuid4().hex * 2,
            size=70_000,
            format="JPEG",
            width=640,
            height=480,
            pdq=pdq,
            pdq_quality=None if pdq is None else 90,
        ),
        model_version=model_version,
        role=role,
        score=probability,
        label=label,
        branches={"lare": 1.5, "aligned": 2.5},
        decided_by="aligned",
        operating_point="fpr=0.01",
        prior=0.1,
        device="cpu",
        dtype="float32",
        evidence_uri=evidence_uri,
    )


def flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the first value of every row."""
    return [row[0] for row in rows]
