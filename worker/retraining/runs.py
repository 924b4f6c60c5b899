"""Training runs: a slot that only one beat wins, a lease that only one trainer holds.

The first process that asks in a slot makes the row of its run, and the fleet has one run at a time.
While it runs, its holder renews a lease; a lease that ran out without a word is a death, after
which the next trainer goes on behind the last finished stage. A holder that gives the run back (a
service was away) does not die.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, cast, func, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import IntegrityError

from detection.errors import UnlatentError
from worker.database.engine import transaction
from worker.ledger.tables_training import TrainingRun

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from sqlalchemy import Engine, Row

_NOW = func.clock_timestamp()
#: A run that kills its process this often is not tried again.
MAX_DEATHS = 3


class LeaseLost(UnlatentError):
    """Another trainer holds this run now."""


class Ending(StrEnum):
    """How a run ends."""

    FINISHED = "finished"
    EMPTY = "empty"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as its holder took it; `stages` are the finished ones with what each left."""

    id: int
    slot: str
    stages: Mapping[str, Any]
    snapshot_id: int | None


class Runs:
    """The table `training_runs` for one holder; raises `LedgerUnavailable`."""

    def __init__(self, engine: Engine, *, holder: str, lease: timedelta) -> None:
        self._engine, self._holder, self._lease = engine, holder, lease

    @property
    def lease_s(self) -> float:
        """For how long a lease is taken."""
        return self._lease.total_seconds()

    def resume(self) -> Run | None:
        """Take over the run that nobody holds any more, if there is one.

        After `MAX_DEATHS` deaths it is ended as failed instead.
        """
        table = TrainingRun
        died = case((table.holder.is_not(None), 1), else_=0)
        with transaction(self._engine) as connection:
            row = connection.execute(
                update(table)
                .where(table.state == "running", table.lease_until < _NOW)
                .values(
                    holder=self._holder,
                    lease_until=_NOW + self._lease,
                    deaths=table.deaths + died,
                )
                .returning(*_COLUMNS, table.deaths)
            ).one_or_none()
        if row is None:
            return None
        if row.deaths >= MAX_DEATHS:
            self.end(row.id, Ending.FAILED, f"the process died {row.deaths} times in this run")
            return None
        return _run(row)

    def begin(self, slot: str, *, trigger: str) -> Run | None:
        """Start the run of a slot; None when the slot is taken or another run is under way."""
        statement = (
            insert(TrainingRun)
            .values(slot=slot, trigger=trigger, holder=self._holder, lease_until=_NOW + self._lease)
            .on_conflict_do_nothing(index_elements=["slot"])
            .returning(*_COLUMNS)
        )
        try:
            with transaction(self._engine) as connection:
                row = connection.execute(statement).one_or_none()
        except IntegrityError:  # the other unique index: one run at a time
            return None
        return None if row is None else _run(row)

    def heartbeat(self, run_id: int) -> None:
        """Renew the lease; raises `LeaseLost`."""
        self._change(run_id, lease_until=_NOW + self._lease)

    def finish_stage(
        self, run_id: int, stage: str, facts: Mapping[str, Any], snapshot_id: int | None
    ) -> None:
        """Record a finished stage; raises `LeaseLost`."""
        left = func.jsonb_build_object(stage, cast(dict(facts), JSONB))
        changes: dict[str, Any] = {"stages": TrainingRun.stages.op("||")(left)}
        if snapshot_id is not None:
            changes["snapshot_id"] = snapshot_id
        self._change(run_id, **changes)

    def end(self, run_id: int, ending: Ending, reason: str | None = None) -> None:
        """End a run; raises `LeaseLost`."""
        self._change(run_id, state=ending.value, reason=reason, ended_at=_NOW)

    def give_back(self, run_id: int) -> None:
        """Let any trainer go on with the run at once; raises `LeaseLost`."""
        self._change(run_id, holder=None, lease_until=_NOW)

    def _change(self, run_id: int, **changes: Any) -> None:  # column values
        with transaction(self._engine) as connection:
            changed = connection.execute(
                update(TrainingRun)
                .where(
                    TrainingRun.id == run_id,
                    TrainingRun.state == "running",
                    TrainingRun.holder == self._holder,
                )
                .values(**changes)
                .returning(TrainingRun.id)
            ).one_or_none()
        if changed is None:
            raise LeaseLost(f"training run {run_id} is no longer held by {self._holder}")


_COLUMNS = (
    TrainingRun.id,
    TrainingRun.slot,
    TrainingRun.stages,
    TrainingRun.snapshot_id,
)


def _run(row: Row[Any]) -> Run:
    return Run(id=row.id, slot=row.slot, stages=row.stages, snapshot_id=row.snapshot_id)
