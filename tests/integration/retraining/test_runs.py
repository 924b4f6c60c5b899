"""Training runs: who may start one, who goes on with it, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from detection.errors import TransientError
from tests.support.processes.training_process import stages
from tests.support.waiting import eventually
from worker.ledger.tables_training import TrainingRun
from worker.retraining.runs import MAX_DEATHS, Ending, LeaseLost, Run, Runs
from worker.retraining.stage_runner import Progress, RunEnds, run_stages
from worker.settings import child_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from worker.settings import Settings

LONG = timedelta(minutes=5)
#: A lease of this length has run out when it is granted.
DEAD = timedelta(seconds=-1)


def row(engine: Engine) -> Any:
    """The only run."""
    with engine.connect() as connection:
        return connection.execute(select(TrainingRun.__table__)).one()


def begun(engine: Engine, *, lease: timedelta = LONG, holder: str = "a") -> tuple[Runs, Run]:
    """A run of the first slot."""
    runs = Runs(engine, holder=holder, lease=lease)
    run = runs.begin("calendar:1", trigger="calendar")
    assert run is not None
    return runs, run


class Does:
    """A stage that does what it is told."""

    def __init__(self, do: Callable[[Progress], Mapping[str, Any]], name: str = "stage") -> None:
        self.name, self._do = name, do

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Do it."""
        return self._do(progress)


def raising(error: Exception) -> Does:
    """A stage that fails."""

    def fail(_progress: Progress) -> Mapping[str, Any]:
        raise error

    return Does(fail)


def test_of_many_beats_one_starts_the_run(engine: Engine) -> None:
    """However many ask for one slot at once, one run starts; its slot stays taken."""
    askers = [Runs(engine, holder=f"trainer-{n}", lease=LONG) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        started = list(pool.map(lambda runs: runs.begin("s", trigger="calendar"), askers))
    won = [index for index, run in enumerate(started) if run is not None]
    assert len(won) == 1

    run = started[won[0]]
    assert run is not None
    askers[won[0]].end(run.id, Ending.FINISHED)
    assert askers[0].begin("s", trigger="calendar") is None


def test_one_run_at_a_time(engine: Engine) -> None:
    """While a run is under way no other slot starts; afterwards the next one does."""
    runs, run = begun(engine)
    other = Runs(engine, holder="b", lease=LONG)
    assert other.begin("calendar:2", trigger="calendar") is None
    assert other.resume() is None

    runs.end(run.id, Ending.EMPTY, "no new images")
    assert other.begin("calendar:2", trigger="calendar") is not None


def test_an_abandoned_run_goes_on_elsewhere(engine: Engine) -> None:
    """A run whose lease ran out goes on behind its finished stages; its old holder is shut out."""
    runs, run = begun(engine)
    runs.finish_stage(run.id, "collect", {"images": 3}, None)
    Runs(engine, holder="a", lease=DEAD).heartbeat(run.id)

    taken = Runs(engine, holder="b", lease=LONG).resume()

    assert taken == Run(
        id=run.id, slot=run.slot, stages={"collect": {"images": 3}}, snapshot_id=None
    )
    assert row(engine).deaths == 1
    with pytest.raises(LeaseLost):
        runs.heartbeat(run.id)
    with pytest.raises(LeaseLost):
        runs.end(run.id, Ending.FINISHED)


def test_a_run_that_keeps_killing_is_ended(engine: Engine) -> None:
    """After three deaths a run fails with that reason instead of killing a fourth process."""
    begun(engine, lease=DEAD)
    for _ in range(MAX_DEATHS - 1):
        assert Runs(engine, holder="b", lease=DEAD).resume() is not None
    assert Runs(engine, holder="c", lease=LONG).resume() is None

    ended = row(engine)
    assert (ended.state, ended.reason) == ("failed", "the process died 3 times in this run")


def test_stages_run_in_order_and_pass_on_what_they_left(engine: Engine) -> None:
    """Each stage sees the facts of those before it, and all are recorded."""
    runs, run = begun(engine)
    seen: list[dict[str, Any]] = []

    def note(progress: Progress) -> Mapping[str, Any]:
        seen.append(dict(progress.facts))
        return {"n": len(seen)}

    ending = run_stages(run, [Does(note, "one"), Does(note, "two")], runs)

    assert ending is Ending.FINISHED
    assert seen == [{}, {"one": {"n": 1}}]
    assert row(engine).stages == {"one": {"n": 1}, "two": {"n": 2}}
    assert row(engine).state == "finished"


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (RunEnds(Ending.EMPTY, "no new images"), "empty", "no new images"),
        (RunEnds(Ending.REFUSED, "size betrays the side"), "refused", "size betrays the side"),
        (OSError(28, "No space left on device"), "failed", "OSError: [Errno 28] No space left"),
    ],
)
def test_how_a_run_ends_is_said(engine: Engine, error: Exception, state: str, reason: str) -> None:
    """A run that ends early or fails keeps its reason; nothing hangs on as running."""
    runs, run = begun(engine)
    run_stages(run, [raising(error)], runs)

    assert row(engine).state == state
    assert row(engine).reason.startswith(reason)


def test_an_outage_gives_the_run_back(engine: Engine) -> None:
    """A service that is away costs no death: the next trainer goes on at once."""
    runs, run = begun(engine)
    assert run_stages(run, [raising(TransientError("storage is away"))], runs) is None

    taken = Runs(engine, holder="b", lease=LONG).resume()
    assert taken is not None
    assert row(engine).deaths == 0


def test_a_lease_lives_through_a_long_stage(engine: Engine) -> None:
    """While a stage runs longer than the lease, nobody else gets the run."""
    runs, run = begun(engine, lease=timedelta(seconds=1))
    first = row(engine).lease_until

    def wait(_progress: Progress) -> Mapping[str, Any]:
        eventually(lambda: row(engine).lease_until > first + timedelta(seconds=1))
        assert Runs(engine, holder="b", lease=LONG).resume() is None
        return {}

    assert run_stages(run, [Does(wait)], runs) is Ending.FINISHED


@pytest.mark.failure
def test_a_killed_trainer_is_resumed(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    """After kill -9 in the middle of a stage another trainer goes on at that stage."""
    marks = tmp_path / "marks"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.processes.training_process", str(marks)],
        env=child_environment(settings),
    )
    try:
        eventually(lambda: marks.exists() and "second" in marks.read_text(), timeout_s=90)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    runs = Runs(engine, holder="survivor", lease=LONG)
    taken: list[Run] = []

    def took() -> bool:
        run = runs.resume()
        if run is not None:
            taken.append(run)
        return bool(taken)

    eventually(took)
    assert run_stages(taken[0], stages(marks, hangs=False), runs) is Ending.FINISHED

    assert marks.read_text().splitlines() == [
        "first []",
        "second ['first']",
        "second ['first']",
    ]
    assert row(engine).deaths == 1
