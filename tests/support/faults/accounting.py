"""The one accounting at the end of every failure test: nothing lost, nothing twice, nothing left.

* events in = terminal rows: every object that was uploaded has its row, and every row has ended;
* a scored row has one verdict a model version, any other row has none;
* nobody is quarantined but whom the test names;
* no message waits in a queue, in `unacked`, in the ingest list or with a bridge;
* no lease is held, no transaction is open, no process of a dead worker is left.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from redis import Redis
from sqlalchemy import func, select, text

from detection.errors import TransientError
from tests.support.waiting import IdleClock, eventually
from worker.ledger.interface import State
from worker.ledger.postgres import PostgresLedger
from worker.ledger.tables import Image, LeaseRow, VerdictRow
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.broker_state import RedisBrokerState
from worker.queue.publisher import CeleryPublisher
from worker.queue.sweeper import Sweeper
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sqlalchemy import Engine

    from worker.localstack.processes import Process
    from worker.settings import Settings

#: Transactions of this database's other connections that are open without a statement running.
_OPEN_TRANSACTIONS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
)


class Accounts:
    """The books of one deployment under test."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        #: Called again and again while something is waited for, for example a supervisor.
        self.keep: Callable[[], object] | None = None
        self._redis = Redis.from_url(settings.redis.url.get_secret_value())
        self._prefix = settings.redis.key_prefix
        self._ingest = settings.redis.key_prefix + settings.redis.ingest_key
        ledger = PostgresLedger(engine)
        self.sweeper = Sweeper(
            ledger=ledger,
            publisher=CeleryPublisher(build_app(settings), ledger),
            messages=RedisBrokerState(settings.redis),
            settings=settings.queue,
            metrics=Metrics(),
        )

    def settle(self, *, events: int, timeout_s: float = 60.0) -> None:
        """Sweep, as beat would have it done, until so many rows exist and all have ended.

        Fails when no further one has ended in so much idle time: what a slow or busy machine needs
        is no fault.
        """
        clock, most = IdleClock(), 0
        tick = threading.Event()
        while True:
            states = self.states()
            if states.total() >= events and not states[State.PENDING]:
                return
            if (ended := states.total() - states[State.PENDING]) > most:
                clock, most = IdleClock(), ended
            if clock.seconds() > timeout_s:
                message = f"of {events} events none has ended in {timeout_s:g} idle s: {states}"
                raise AssertionError(message)
            if self.keep is not None:
                self.keep()
            with suppress(TransientError):  # a service is away: the next tick is the retry
                self.sweeper.tick()
            tick.wait(0.2)

    def sweep_for(self, seconds: float) -> None:
        """Sweep for so long, as beat would have it done: an outage lasts, it is no time-out."""
        ends, tick = time.monotonic() + seconds, threading.Event()
        while time.monotonic() < ends:
            with suppress(TransientError):
                self.sweeper.tick()
            tick.wait(0.2)

    def states(self) -> Counter[str]:
        """Count the rows by state."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(Image.state, func.count()).group_by(Image.state))
            return Counter({row[0]: row[1] for row in rows})

    def pending_with_deaths(self, least: int) -> int:
        """Count the images that wait and have died so often."""
        return self._count(
            select(func.count()).where(Image.state == State.PENDING, Image.deaths >= least)
        )

    def check(
        self,
        keys: Iterable[str],
        *,
        quarantined: Collection[str] = (),
        stored_again: Collection[str] = (),
        processes: Collection[Process] = (),
        timeout_s: float = 60.0,
    ) -> Counter[str]:
        """Wait for the end of everything and check the books; return the count of each state.

        `keys` names the object of every distinct upload, `quarantined` those that must end so,
        `stored_again` those whose earlier life ended in a removal, which may have left withdrawn
        rows, and `processes` those that must be gone. A worker must still run, to take back what
        its predecessors left unacknowledged.
        """
        expected = Counter(keys)
        self.settle(events=expected.total(), timeout_s=timeout_s)
        with self._engine.begin() as connection:
            rows = connection.execute(select(Image.id, Image.key, Image.state, Image.reason)).all()
            verdicts = Counter(
                (row.image_id, row.model_version)
                for row in connection.execute(select(VerdictRow.image_id, VerdictRow.model_version))
            )
        removed = {
            row.id for row in rows if row.key in stored_again and row.state == State.WITHDRAWN
        }
        rows = [row for row in rows if row.id not in removed]
        verdicts = Counter({key: n for key, n in verdicts.items() if key[0] not in removed})
        assert Counter(row.key for row in rows) == expected
        scored = {row.id for row in rows if row.state == State.SCORED}
        assert set(verdicts.values()) <= {1}
        assert {image_id for image_id, _ in verdicts} == scored
        found = {row.key for row in rows if row.state == State.QUARANTINED}
        assert found == set(quarantined), self._lives(found - set(quarantined))
        eventually(lambda: not self.left(), timeout_s=timeout_s, what=f"empty lists {self.left()}")
        eventually(lambda: not self._count(_OPEN_TRANSACTIONS), what="the end of every transaction")
        ledger = PostgresLedger(self._engine)
        eventually(lambda: ledger.backlog().leased == 0, what="the end of every lease")
        eventually(
            lambda: not any(process.running for process in processes),
            what="the end of every process of a dead worker",
        )
        return Counter(row.state for row in rows)

    def left(self) -> dict[str, int]:
        """Return what still waits, by key."""
        waiting: dict[str, int] = {}
        bridges = self._redis.scan_iter(match=f"{self._ingest}:processing:*")
        names = [self._prefix + queue for queue in queues.QUEUES]
        for key in [*names, self._ingest, *(key.decode() for key in bridges)]:
            waiting[key] = self._redis.llen(key)
        aside = f"{self._ingest}:waiting"
        waiting[aside] = self._redis.zcard(aside)
        waiting["unacked"] = self._redis.hlen(f"{self._prefix}unacked")
        waiting["unacked_index"] = self._redis.zcard(f"{self._prefix}unacked_index")
        return {key: count for key, count in waiting.items() if count}

    def _lives(self, keys: Collection[str]) -> str:
        """Tell what became of every lease of these images, so that a death can be looked up."""
        wanted = (
            select(Image.key, LeaseRow.worker, LeaseRow.since, LeaseRow.until, LeaseRow.outcome)
            .join(Image, Image.id == LeaseRow.image_id)
            .where(Image.key.in_(keys))
            .order_by(Image.key, LeaseRow.id)
        )
        with self._engine.begin() as connection:
            return "\n".join(
                f"{row.key} {row.worker} {row.since:%H:%M:%S} {row.until:%H:%M:%S} {row.outcome}"
                for row in connection.execute(wanted)
            )

    def _count(self, query: object) -> int:
        with self._engine.begin() as connection:
            return int(connection.execute(query).scalar_one())  # type: ignore[call-overload]  # text()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
