"""The Postgres ledger keeps the contract, also between connections and when Postgres is away."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from socket import (
    AF_INET,
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_USER_TIMEOUT,
    socket,
)
from threading import Event
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc, text

from tests.support.ledger_contract import (
    LONG,
    LedgerContract,
    MakeLedger,
    registered,
    scored,
    upload,
)
from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable, build_engine, connect, transaction
from worker.ledger.interface import DeathPolicy, HeldElsewhere, Lease, Ledger, Removal
from worker.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy import Engine

    from tests.support.pgbouncer import PgBouncer
    from worker.localstack import LocalStack
    from worker.settings import Settings


@contextmanager
def held_before_commit(engine: Engine) -> Iterator[tuple[Event, Event]]:
    """Hold the first transaction that is ready to commit in the block until the second event."""
    arrived, go_on = Event(), Event()

    def hold(_connection: object) -> None:
        if not arrived.is_set():
            arrived.set()
            go_on.wait(30)

    event.listen(engine, "commit", hold)
    try:
        yield arrived, go_on
    finally:
        event.remove(engine, "commit", hold)


def waiting_for_locks(engine: Engine) -> int:
    """Count the sessions of this database that wait for another one's lock."""
    with engine.connect() as connection:
        return int(
            connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
            or 0
        )


class TestPostgresLedger(LedgerContract):
    """The contract over Postgres, and what only a database can get wrong."""

    @pytest.fixture
    def make_ledger(self, engine: Engine) -> MakeLedger:
        """Build ledgers as the service's role."""

        def make(deaths: DeathPolicy | None = None) -> Ledger:
            return PostgresLedger(engine, deaths=deaths)

        return make

    def test_of_workers_that_ask_at_once_exactly_one_wins(self, ledger: Ledger) -> None:
        """Six connections ask for the same images together; each image has one holder."""
        images = [registered(ledger, f"{n}.jpg") for n in range(5)]

        def ask(image_id: UUID) -> object:
            return ledger.lease(image_id, worker="w", duration=LONG)

        with ThreadPoolExecutor(6) as pool:
            for image_id in images:
                answers = list(pool.map(ask, [image_id] * 6))
                assert sum(isinstance(answer, Lease) for answer in answers) == 1
                assert sum(isinstance(answer, HeldElsewhere) for answer in answers) == 5

    def test_of_batches_that_overlap_each_image_has_one_lease(self, ledger: Ledger) -> None:
        """Six connections lease the same images in opposite orders: no deadlock, one lease each."""
        images = [registered(ledger, f"{n}.jpg") for n in range(40)]
        asked = [images, images[::-1], images[10:30], images[30:10:-1], images, images[::-1]]

        def ask(image_ids: list[UUID]) -> list[Lease | None]:
            return ledger.lease_together(image_ids, worker="w", duration=LONG)

        with ThreadPoolExecutor(6) as pool:
            answers = [one for some in pool.map(ask, asked) for one in some if one is not None]
        assert sorted(lease.image_id for lease in answers) == sorted(images)

    def test_a_locked_row_holds_up_no_batch(self, ledger: Ledger, engine: Engine) -> None:
        """An image that somebody has locked is left out; its neighbours are leased at once."""
        first, locked, last = (registered(ledger, f"{n}.jpg") for n in range(3))
        with engine.begin() as holder:
            holder.execute(
                text("SELECT FROM app.images WHERE id = :image FOR UPDATE"), {"image": locked}
            )
            answers = ledger.lease_together([last, locked, first], worker="w", duration=LONG)
        assert [one and one.image_id for one in answers] == [last, None, first]

    def test_a_later_releases_column_breaks_no_prepared_lease(
        self, settings: Settings, pooler: PgBouncer | None
    ) -> None:
        """A migration ahead of the code adds a column while the statement is prepared."""
        if pooler is not None:
            pytest.skip("behind a pooler nothing is prepared")
        assert settings.postgres.owner_url is not None
        # One connection, which prepares at once.
        url = settings.postgres.url.get_secret_value()
        single = connect(url, pool_size=1, prepare_threshold=1)
        ledger = PostgresLedger(single)
        images = [registered(ledger, f"{n}.jpg") for n in range(6)]
        owner = connect(settings.postgres.owner_url.get_secret_value())
        for n, image_id in enumerate(images):
            if n == 3:
                with owner.begin() as migration:
                    migration.exec_driver_sql("ALTER TABLE app.images ADD COLUMN later text")
            (lease,) = ledger.lease_together([image_id], worker="w", duration=LONG)
            assert lease is not None
            assert ledger.reusable_verdicts(["0" * 64], model_version="m", intake_version=1) == {}
        single.dispose()
        owner.dispose()

    @pytest.mark.parametrize(
        "faulty",
        [
            {"size": 2**63},  # DataError
            {"key": "nul\0"},  # DataError
            {"sha256": "not hexadecimal"},  # IntegrityError
            {"key": "".join(chr(0x4E00 + n) for n in range(9000))},  # too large for an index
        ],
    )
    def test_what_a_row_is_to_blame_for_is_no_outage(
        self, ledger: Ledger, faulty: dict[str, object]
    ) -> None:
        """A row that the database can never take is not called a database that is away."""
        with pytest.raises(exc.DBAPIError):
            ledger.register([upload(**faulty)])

    def test_too_many_parameters_are_no_outage(self, engine: Engine) -> None:
        """Neither is a statement that never reaches the server."""
        wanted = ", ".join(f":p{n}" for n in range(70_000))
        values = {f"p{n}": n for n in range(70_000)}
        with pytest.raises(exc.OperationalError), transaction(engine) as connection:
            connection.execute(text(f"SELECT 1 WHERE 1 IN ({wanted})"), values)

    def test_bridges_with_overlapping_batches_make_one_row_each(
        self, ledger: Ledger, engine: Engine
    ) -> None:
        """Two bridges that register the same uploads in opposite order agree on the rows."""
        uploads = [upload(f"{n}.jpg") for n in range(200)]
        with ThreadPoolExecutor(4) as pool:
            batches = [uploads, uploads[::-1], uploads[50:150], uploads[150:50:-1]]
            answers = [a for batch in pool.map(ledger.register, batches) for a in batch]
        assert sum(answer.created for answer in answers) == 200
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM app.images")) == 200

    @pytest.mark.parametrize("first", ["register", "withdraw"])
    @pytest.mark.parametrize("sequencer", ["10", None])
    def test_a_registration_and_a_removal_at_once_leave_nothing_pending(
        self, ledger: Ledger, engine: Engine, first: str, sequencer: str | None
    ) -> None:
        """While one bridge stands before its commit another one comes: it sees what the first did.

        Without sequencers, too: whichever came second then decides.
        """
        created = upload(sequencer=sequencer)
        steps: dict[str, Callable[[], object]] = {
            "register": lambda: ledger.register([created]),
            "withdraw": lambda: ledger.withdraw(
                [Removal(bucket="uploads", key="a.jpg", sequencer="20")]
            ),
        }
        (second,) = steps.keys() - {first}
        with ThreadPoolExecutor(2) as pool, held_before_commit(engine) as (arrived, go_on):
            one = pool.submit(steps[first])
            assert arrived.wait(10)
            other = pool.submit(steps[second])
            # It waits for the first, or it is through because nothing holds it.
            eventually(
                lambda: other.done() or waiting_for_locks(engine) > 0, what="the second bridge"
            )
            go_on.set()
            one.result(10)
            other.result(10)
        pending = ledger.backlog().pending
        assert pending == (1 if (first, sequencer) == ("withdraw", None) else 0)

    def test_two_bridges_that_name_one_object_differently_make_one_row(
        self, ledger: Ledger, engine: Engine
    ) -> None:
        """A hook's etag on one bridge, storage's version on another, many keys, both orders."""
        keys = [f"{n}.jpg" for n in range(60)]
        hooked = [upload(key, sequencer=None, source="web") for key in keys]
        named = [upload(key, version_id=f"v-{key}") for key in reversed(keys)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ledger.register, [hooked, named, hooked[::-1], named[::-1]]))
        with engine.connect() as connection:
            rows = connection.execute(
                text("SELECT key, version_id, source FROM app.images ORDER BY key")
            ).all()
        assert [tuple(row) for row in rows] == [(key, f"v-{key}", "web") for key in sorted(keys)]

    def test_more_uploads_than_a_statement_has_parameters(self, ledger: Ledger) -> None:
        """A batch of any size is one transaction; so are its repetition and its removal."""
        uploads = [upload(f"{n}.jpg") for n in range(7000)]
        assert all(answer.created for answer in ledger.register(uploads))
        assert not any(answer.created for answer in ledger.register(uploads))
        gone = [Removal(bucket="uploads", key=one.key, sequencer="20") for one in uploads[:200]]
        assert ledger.withdraw(gone) == 200

    def test_every_change_of_state_is_in_the_audit(self, ledger: Ledger, engine: Engine) -> None:
        """Registration, verdict and withdrawal leave a row each, with who did it."""
        image_id = scored(ledger)
        ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="20")])
        with engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT from_state, to_state, reason, actor FROM app.audit_log "
                    "WHERE image_id = :image ORDER BY id"
                ),
                {"image": image_id},
            ).all()
        assert [tuple(row) for row in rows] == [
            (None, "pending", None, "unlatent_app"),
            ("pending", "scored", None, "unlatent_app"),
            ("scored", "withdrawn", "removed", "unlatent_app"),
        ]

    def test_a_silent_network_ends_a_connection(
        self, settings: Settings, request: pytest.FixtureRequest
    ) -> None:
        """The kernel gives a connection up within the time of a statement, waiting or sending."""
        limits = settings.postgres.model_copy(update={"statement_timeout_s": 12.0})
        engine = build_engine(limits)
        request.addfinalizer(engine.dispose)
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            with socket(fileno=os.dup(driver.fileno())) as wire:
                assert wire.family == AF_INET
                assert wire.getsockopt(SOL_SOCKET, SO_KEEPALIVE) == 1
                first_s = wire.getsockopt(IPPROTO_TCP, TCP_KEEPIDLE)
                between_s = wire.getsockopt(IPPROTO_TCP, TCP_KEEPINTVL)
                probes = wire.getsockopt(IPPROTO_TCP, TCP_KEEPCNT)
                assert first_s + between_s * probes == 12
                assert wire.getsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT) == 12_000

    def test_an_absent_database_is_a_transient_error(
        self, ledger: Ledger, stack: LocalStack, pooler: PgBouncer | None
    ) -> None:
        """While Postgres is down the ledger says so; afterwards it works on the same pool."""
        image_id = registered(ledger)
        stack.postgres.stop()
        with pytest.raises(LedgerUnavailable):
            ledger.backlog()
        stack.postgres.start()

        def leased() -> bool:
            try:
                return isinstance(ledger.lease(image_id, worker="w", duration=LONG), Lease)
            except LedgerUnavailable:
                assert pooler is not None, "only a pooler takes a moment to notice"
                return False

        eventually(leased, what="a lease")

    @pytest.mark.parametrize("trusted_s", [0.0, 1e9], ids=["waited long", "used just now"])
    def test_a_restart_while_connections_wait_is_hidden(
        self, ledger: Ledger, stack: LocalStack, monkeypatch: pytest.MonkeyPatch,
        pooler: PgBouncer | None, trusted_s: float,
    ) -> None:  # fmt: skip
        """A connection is tried first, however short its wait, if a restart may have broken it."""
        assert ledger.backlog().pending == 0
        stack.postgres.stop()
        stack.postgres.start()
        monkeypatch.setattr("worker.database.engine._TRUSTED_S", trusted_s)
        if pooler is None:
            assert ledger.backlog().pending == 0

    def test_a_busy_pool_asks_for_nothing_else(
        self, ledger: Ledger, engine: Engine, pooler: PgBouncer | None
    ) -> None:
        """A transaction on a direct connection is BEGIN, its statements and COMMIT."""
        if pooler is not None:
            pytest.skip("behind a pooler a transaction sets its own limits")
        sent: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            sent.append(statement)

        ledger.last_read()
        event.listen(engine, "before_cursor_execute", note)
        ledger.last_read()
        event.remove(engine, "before_cursor_execute", note)
        assert len(sent) == 1

    def test_a_locked_row_is_a_transient_error(
        self, ledger: Ledger, engine: Engine, settings: Settings
    ) -> None:
        """A row that somebody else holds for too long is tried again later."""
        image_id = registered(ledger)
        impatient = build_engine(settings.postgres.model_copy(update={"lock_timeout_s": 0.1}))
        with engine.begin() as holder:
            holder.execute(text("SELECT 1 FROM app.images FOR UPDATE"))
            with pytest.raises(LedgerUnavailable, match="lock timeout"):
                PostgresLedger(impatient).lease(image_id, worker="w", duration=LONG)
        impatient.dispose()
