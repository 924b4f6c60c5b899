"""Postgres may restart, go away, run out of connections or disk: work waits, nothing is lost."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import update

from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable
from worker.ledger.interface import State, Upload
from worker.ledger.tables import Image
from worker.queue import names as queues

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from tests.support.processes.worker_process import WorkerProcess
    from worker.localstack import LocalStack


def upload(site: Site, first: int, count: int) -> list[str]:
    """Upload different images and return their keys."""
    keys = [f"{index}.png" for index in range(first, first + count)]
    for index, key in enumerate(keys):
        site.upload(key, png(first + index))
    return keys


def at_work(crew: Crew) -> WorkerProcess:
    """Start a worker and wait for its first verdict."""
    worker = crew.worker()
    eventually(lambda: bool(worker.events("verdict_stored")), timeout_s=60, what="a first verdict")
    return worker


def test_an_immediate_restart_is_survived(
    site: Site, crew: Crew, accounts: Accounts, stack: LocalStack
) -> None:
    """Every connection is cut in the middle of the work; the worker goes on by itself."""
    keys = upload(site, 0, 40)
    worker = at_work(crew)
    process = stack.postgres.process
    assert process is not None
    process.send(signal.SIGQUIT)
    eventually(lambda: not process.running, what="the end of Postgres")
    stack.postgres.kill()  # only reaps it
    stack.postgres.start()
    keys += upload(site, 40, 10)
    assert accounts.check(keys, timeout_s=90) == {State.SCORED: len(keys)}
    assert worker.process.poll() is None
    assert site.ledger.backlog().recent_deaths == 0


@pytest.mark.parametrize("outage_s", [2, pytest.param(60, marks=pytest.mark.full)])
def test_postgres_away_is_no_death(
    outage_s: int, site: Site, crew: Crew, accounts: Accounts, stack: LocalStack
) -> None:
    """The worker waits for its ledger, holds what it has, and an outage kills no image."""
    keys = upload(site, 0, 40)
    worker = at_work(crew)
    stack.postgres.kill()
    eventually(lambda: bool(worker.events("ledger_unavailable")), what="a worker that waits")
    if outage_s > 2:
        away = len(worker.events("ledger_unavailable"))
        # At the longest delay of 5 s, four threads: as many tries as the outage is long.
        eventually(
            lambda: len(worker.events("ledger_unavailable")) >= away + 4 * outage_s // 5,
            timeout_s=2.0 * outage_s,
            what="a long outage",
        )
    stack.postgres.start()
    assert accounts.check(keys, timeout_s=100) == {State.SCORED: len(keys)}
    assert worker.process.poll() is None


def test_without_connections_work_waits(
    site: Site, crew: Crew, accounts: Accounts, stack: LocalStack, database: str
) -> None:
    """A server that refuses connections is away, not broken."""
    keys = upload(site, 0, 40)
    worker = at_work(crew)
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as superuser:
        superuser.execute(f'ALTER DATABASE "{database}" CONNECTION LIMIT 0')
        superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database]
        )
        eventually(
            lambda: any(
                "too many connections" in event["error"]
                for event in worker.events("ledger_unavailable")
            ),
            what="a refused connection",
        )
        superuser.execute(f'ALTER DATABASE "{database}" CONNECTION LIMIT -1')
    assert accounts.check(keys, timeout_s=90) == {State.SCORED: len(keys)}
    assert site.ledger.backlog().recent_deaths == 0


def test_a_serialization_failure_is_tried_again(
    site: Site, crew: Crew, accounts: Accounts, stack: LocalStack, database: str, engine: Engine
) -> None:
    """Where an operator chose a stricter isolation, a lost race is one more try."""
    facts = site.storage.put(site.bucket, "a.png", png(1), content_type="image/png")
    (row,) = site.ledger.register([Upload(bucket=site.bucket, key="a.png", etag=facts.etag)])
    with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as superuser:
        superuser.execute(
            f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = 'repeatable read'"
        )
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

        def somebody_waits() -> bool:
            return superuser.execute(waiting).fetchone() != (0,)

        worker = crew.worker().wait_until_ready()
        with engine.begin() as rival:
            rival.execute(update(Image).values(uploader="somebody"))
            site.celery.send_task(queues.SCORE_TASK, args=[str(row.image_id)])
            eventually(somebody_waits, what="a worker that waits for the row")
    assert accounts.check(["a.png"]) == {State.SCORED: 1}
    assert any(
        "could not serialize" in event["error"] for event in worker.events("ledger_unavailable")
    )


#: The size of a segment of the write-ahead log: no smaller limit lets Postgres start.
LIMIT_BYTES = 16 * 2**20


def log(connection: psycopg.Connection, characters: int, rows: int = 1) -> None:
    """Add rows of so many characters to the audit."""
    connection.execute(
        "INSERT INTO app.audit_log (action) SELECT repeat('x', %s) FROM generate_series(1, %s)",
        [characters, rows],
    )


def fill_gaps(connection: psycopg.Connection) -> None:
    """Add the smallest rows that there are, as long as they fit."""
    for _ in range(1000):
        log(connection, 1)


def fill(connection: psycopg.Connection) -> None:
    """Bring the audit's file to the limit, in rows that leave no room for others in their pages."""

    def value(query: str) -> int:
        row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    # Four rows a page; a longer row would be stored elsewhere.
    page, longest, tried = 8192, 2032, 1900
    log(connection, tried)
    measured = value("SELECT max(pg_column_size(log)) FROM app.audit_log log")
    characters = tried + (longest - measured) // 8 * 8
    left = LIMIT_BYTES - value("SELECT pg_relation_size('app.audit_log')")
    log(connection, characters, left // page * 4)


@contextmanager
def full_disk(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start Postgres anew so that it cannot write files beyond the limit, and at the end again."""
    plain = stack.postgres.command()
    blocks = str(LIMIT_BYTES // 512)
    with monkeypatch.context() as patched:
        patched.setattr(
            stack.postgres,
            "command",
            lambda: ["/bin/sh", "-c", 'ulimit -f "$0"; exec "$@"', blocks, *plain],
        )
        stack.postgres.stop()
        stack.postgres.start()
    try:
        yield
    finally:
        stack.postgres.stop()
        stack.postgres.start()


@pytest.mark.full
def test_a_full_disk_of_postgres_loses_nothing(
    site: Site,
    crew: Crew,
    accounts: Accounts,
    stack: LocalStack,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Postgres cannot store is not confirmed; workers hold on until there is room again."""
    keys = upload(site, 0, 20)
    with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as superuser:
        fill(superuser)
    late = Upload(bucket=site.bucket, key="late.png", etag="0" * 32)
    with full_disk(stack, monkeypatch):
        with (
            psycopg.connect(stack.postgres.dsn(database), autocommit=True) as superuser,
            pytest.raises(psycopg.Error, match="could not extend"),
        ):
            fill_gaps(superuser)
        with pytest.raises(LedgerUnavailable, match="could not extend"):
            site.ledger.register([late])
        worker = crew.worker()
        eventually(
            lambda: "could not extend" in worker.log.read_text(), timeout_s=90, what="a full disk"
        )
        assert accounts.states() == {State.PENDING: len(keys)}
    site.ledger.register([late])
    states = accounts.check([*keys, "late.png"], timeout_s=100)
    assert states == {State.SCORED: len(keys), State.FAILED: 1}
    assert worker.process.poll() is None
    assert site.ledger.backlog().recent_deaths == 0
