"""Beat, the queue and the trainer as processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.ledger.tables_training import TrainingRun
from worker.retraining.candidates import collect_policy
from worker.retraining.triggers import due_slots

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.settings import Settings


def with_training(settings: Settings, **changes: Any) -> Settings:
    """The same services, with retraining set up."""
    training = settings.training.model_copy(
        update={"sources": ("web",), "bucket": settings.s3.buckets[0], **changes}
    )
    return settings.model_copy(update={"training": training})


def runs(engine: Engine) -> list[Any]:
    """Every run, oldest first."""
    with engine.connect() as connection:
        return list(
            connection.execute(select(TrainingRun.__table__).order_by(TrainingRun.id)).all()
        )


def test_two_beats_start_one_run_a_slot(engine: Engine, settings: Settings) -> None:
    """Beat asks every second, twice over; the trainer starts one run and says what came of it."""
    calendar = with_training(settings, tick_s=1.0, every_s=86_400.0)
    folder = calendar.observability.run_dir
    second = calendar.model_copy(
        update={
            "observability": calendar.observability.model_copy(
                update={"run_dir": folder.with_name("second")}
            )
        }
    )
    with (
        WorkerProcess(calendar, module="worker", arguments=["trainer"]) as trainer,
        WorkerProcess(calendar, module="worker", arguments=["beat"]),
        WorkerProcess(second, module="worker", arguments=["beat"]),
    ):
        eventually(lambda: trainer.ready, timeout_s=120)
        eventually(
            lambda: any(run.state != "running" for run in runs(engine)),
            timeout_s=120,
            what="a run that ended",
        )
        trainer.stop()
        # One of the beats writes to the same log.
        steps = {event["step"] for event in trainer.events("start_step_ended")}
        assert steps == {"imports", "tasks", "schedule"}

    (run,) = runs(engine)
    assert (run.state, run.trigger) == ("empty", "calendar")
    assert run.reason.startswith("0 new images")
    assert run.slot.startswith("calendar:86400:")


@pytest.mark.parametrize(
    ("triggers", "expected"),
    [({}, []), ({"every_s": 1e12}, ["calendar:1e+12:0"]), ({"min_new_images": 1}, [])],
)
def test_what_is_due(
    engine: Engine, settings: Settings, triggers: dict[str, Any], expected: list[str]
) -> None:
    """Without a trigger nothing is due; the calendar names a slot; no new image is no reason."""
    training = with_training(settings, **triggers).training

    assert [one.slot for one in due_slots(engine, training, collect_policy(training))] == expected
