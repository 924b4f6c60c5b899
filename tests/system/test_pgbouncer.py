"""The service behind PgBouncer, in session mode and in transaction mode."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url, text

from detection.errors import SettingsError
from tests.support.pgbouncer import PgBouncer
from worker.database.engine import LedgerUnavailable, connect, transaction
from worker.ledger.interface import Upload
from worker.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.localstack import LocalStack

REPOSITORY = Path(__file__).parents[2]
MODES = ("session", "transaction")
#: Tests of everything that talks to Postgres; they are reached through the pooler by `--pooler`.
DATABASE_TESTS = (
    "tests/integration/ledger",
    "tests/integration/models/test_registry.py",
    "tests/integration/moderation/test_commands.py",
    "tests/integration/moderation/test_idle_moderators.py",
    "tests/integration/moderation/test_policies.py",
    "tests/integration/moderation/test_retention.py",
    "tests/integration/moderation/test_review.py",
    "tests/integration/moderation/test_webhooks.py",
    "tests/integration/ingest/test_client.py",
    "tests/integration/retraining/test_runs.py",
    "tests/migrations/test_migrations.py",
)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each mode in which the pooler shares its connections."""
    return str(request.param)


@pytest.fixture
def narrow(stack: LocalStack, mode: str) -> Iterator[PgBouncer]:
    """A pooler with three connections to a database for each login, so that all are shared."""
    pooler = PgBouncer(stack, mode, pool_size=3)
    pooler.start()
    yield pooler
    pooler.kill()


@pytest.mark.timeout(1200)
def test_the_database_tests_pass(mode: str) -> None:
    """Ledger, registry, moderation, runs and migrations do the same through a pooler."""
    tests = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*tests, "--pooler", mode, "-m", "not full", *DATABASE_TESTS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def test_time_outs_bind_each_transaction_and_nobody_else(
    stack: LocalStack, database: str, narrow: PgBouncer
) -> None:
    """On whichever connection a transaction runs it is bounded; other clients' are as they were."""
    url = narrow.before(stack.addresses.database_url(database))
    engine = connect(url, statement_timeout_s=0.2, lock_timeout_s=0.1)
    for _ in range(6):
        with transaction(engine) as connection:
            shown = [
                connection.scalar(text(f"SHOW {name}"))
                for name in (
                    "statement_timeout",
                    "lock_timeout",
                    "idle_in_transaction_session_timeout",
                )
            ]
        assert shown == ["200ms", "100ms", "200ms"]
    with (
        pytest.raises(LedgerUnavailable, match="statement timeout"),
        transaction(engine) as connection,
    ):
        connection.execute(text("SELECT pg_sleep(60)"))
    engine.dispose()
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    for _ in range(3):
        with psycopg.connect(plain) as stranger:
            assert stranger.execute("SHOW statement_timeout").fetchone() == ("0",)


def register_from_many_producers(url: str, *, prepare_threshold: int | None = None) -> int:
    """Register 240 uploads from eight pools at once; return how many rows that made."""

    def register(producer: int) -> int:
        engine = connect(url, pool_size=1, prepare_threshold=prepare_threshold)
        ledger = PostgresLedger(engine)
        uploads = [Upload(bucket="b", key=f"{producer}/{n}.jpg", etag="e") for n in range(30)]
        try:
            return sum(ledger.register([upload])[0].created for upload in uploads)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(register, range(8)))


def test_many_producers_share_few_connections(
    stack: LocalStack, database: str, narrow: PgBouncer
) -> None:
    """Registrations from more pools than the pooler has connections all arrive, each once."""
    assert (
        register_from_many_producers(narrow.before(stack.addresses.database_url(database))) == 240
    )


@pytest.mark.parametrize("mode", ["transaction"])
def test_prepared_statements_that_the_pooler_loses_are_a_setting(
    stack: LocalStack, database: str, narrow: PgBouncer
) -> None:
    """Who asks for them behind a pooler that cannot keep them is told what to set."""
    url = narrow.before(stack.addresses.database_url(database))
    with pytest.raises(SettingsError, match="UNLATENT_POSTGRES__PREPARE_THRESHOLD to 0"):
        register_from_many_producers(url, prepare_threshold=1)


def test_a_parameter_that_the_pooler_refuses_is_named(
    stack: LocalStack, database: str, narrow: PgBouncer
) -> None:
    """An address that carries server settings says where they must go; no other try is made."""
    url = narrow.before(stack.addresses.database_url(database)) + "?options=-c%20geqo%3Doff"
    engine = connect(url)
    with pytest.raises(SettingsError, match=r"take it out.*unsupported startup parameter: options"):
        PostgresLedger(engine).backlog()
    engine.dispose()


def test_a_pooler_that_reaches_no_server_is_an_absent_database(
    stack: LocalStack, database: str, narrow: PgBouncer
) -> None:
    """While Postgres is away behind a living pooler, callers try again later."""
    engine = connect(narrow.before(stack.addresses.database_url(database)))
    ledger = PostgresLedger(engine)
    assert ledger.backlog().pending == 0
    stack.postgres.stop()
    for _ in range(2):  # a connection that was there, and a new one
        with pytest.raises(LedgerUnavailable):
            ledger.backlog()
        engine.dispose()


def test_two_pods_migrate_at_once(stack: LocalStack, narrow: PgBouncer) -> None:
    """Racing migrators take turns although their transactions share connections; none is left."""
    name = f"fresh_{uuid4().hex}"
    stack.database.clone("template1", name)
    url = narrow.before(stack.addresses.owner_url(name))
    pods = [
        subprocess.Popen(
            [sys.executable, "-m", "worker", "migrate"],
            cwd=REPOSITORY,
            env=os.environ | {"UNLATENT_POSTGRES__OWNER_URL": url},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [pod.communicate()[0] for pod in pods] == ["the schema is current\n"] * 2
    with psycopg.connect(stack.postgres.dsn(name)) as superuser:
        kept = superuser.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert kept.fetchone() == (0,)
        owners = superuser.execute(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'app'"
        )
        assert owners.fetchall() == [("unlatent_owner",)]
    stack.database.drop(name)
