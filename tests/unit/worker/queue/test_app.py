"""The Celery configuration and the tasks' contract with it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from celery.exceptions import Reject, Retry

from worker.database.engine import LedgerUnavailable
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.tasks import register_tasks
from worker.settings import Settings
from worker.storage.interface import StorageForbidden, StorageUnavailable
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from celery import Celery


class Pipeline:
    """Raises what it was told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.checked: list[UUID] = []

    def score(self, image_id: UUID) -> None:
        """Check an image."""
        self.checked.append(image_id)
        if self.error is not None:
            raise self.error

    rescore = score


METRICS = Metrics()


def failing() -> None:
    """Fail, as a statement does that runs out of time."""
    raise LedgerUnavailable


def application(pipeline: Pipeline) -> Celery:
    """Return an application whose checks are stubbed."""
    app = build_app(Settings())
    register_tasks(
        app,
        pipeline=pipeline,  # type: ignore[arg-type]  # a stub
        periodic=dict.fromkeys(queues.PERIODIC, list) | {queues.COUNTS_TASK: failing},
        metrics=METRICS,
    )
    return app


def task(pipeline: Pipeline, name: str = queues.SCORE_TASK) -> object:
    """Return a task of an application whose checks are stubbed."""
    return application(pipeline).tasks[name]


def test_building_the_application_imports_no_torch() -> None:
    """Beat and the bridge build the application in small processes."""
    script = (
        "import sys; from worker.queue.app import build_app; from worker.settings import Settings;"
        "build_app(Settings()); import worker.queue.tasks; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_nothing_but_json_is_accepted_and_messages_outlive_their_worker() -> None:
    """What a compromised broker could abuse is off, and acknowledgements come last."""
    configuration = build_app(Settings()).conf
    assert configuration.accept_content == ["json"]
    assert configuration.task_acks_late
    assert not configuration.task_create_missing_queues
    assert not configuration.worker_enable_remote_control
    assert [queue.name for queue in configuration.task_queues] == [*queues.QUEUES, queues.TRAIN]


@pytest.mark.parametrize(
    "trigger", [{}, {"every_s": 3600.0}, {"min_new_images": 100}, {"on_drift": True}]
)
def test_beat_asks_for_training_only_when_a_trigger_is_set(trigger: dict[str, float]) -> None:
    """Retraining is nobody's default: without a trigger beat never sends its task."""
    schedule = build_app(Settings.model_validate({"training": trigger})).conf.beat_schedule
    assert ("retrain" in schedule) is bool(trigger)


def test_every_scheduled_task_exists() -> None:
    """Beat sends no message that no worker knows."""
    app = application(Pipeline())
    scheduled = {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert scheduled <= app.tasks.keys()
    assert set(queues.PERIODIC) == scheduled


def test_periodic_work_counts_how_it_ends() -> None:
    """What fails is counted for its alert and raised for the log; what is done is counted apart."""
    app = application(Pipeline())
    with pytest.raises(LedgerUnavailable):
        app.tasks[queues.COUNTS_TASK]()
    app.tasks[queues.BREAKERS_TASK]()

    def value(name: str, task: str) -> float | None:
        return METRICS.registry.get_sample_value(f"unlatent_periodic_{name}_total", {"task": task})

    assert value("failures", "keep_counts") == 1
    assert value("runs", "keep_counts") is None
    assert (value("failures", "check_breakers"), value("runs", "check_breakers")) == (0, 1)


def test_retries_end_well_before_the_visibility_timeout() -> None:
    """A message that waits for its retry must not be redelivered beside it."""
    app = application(Pipeline())
    for name in (queues.SCORE_TASK, queues.RESCORE_TASK):
        assert app.tasks[name].retry_backoff_max * 5 <= Settings().queue.visibility_timeout_s
        assert app.tasks[name].acks_late


@pytest.mark.parametrize("name", [queues.SCORE_TASK, queues.RESCORE_TASK])
def test_a_task_checks_the_image_it_names(name: str) -> None:
    """The id arrives as text and leaves as an id."""
    pipeline, image_id = Pipeline(), uuid4()
    task(pipeline, name).run(str(image_id))  # type: ignore[attr-defined]
    assert pipeline.checked == [image_id]


@pytest.mark.parametrize("image_id", ["", "not-an-id", None, 7, ["x"]])
def test_what_is_no_id_is_acknowledged(image_id: object) -> None:
    """A message that names nothing is not retried for ever."""
    pipeline = Pipeline()
    task(pipeline).run(image_id)  # type: ignore[attr-defined]
    assert pipeline.checked == []


def test_a_transient_fault_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery sends the message again, later."""
    retried = task(Pipeline(StorageUnavailable()))
    countdowns: list[float] = []

    def retry(**options: float) -> Retry:
        countdowns.append(options["countdown"])
        return Retry()

    monkeypatch.setattr(retried, "retry", retry)
    with pytest.raises(Retry):
        retried.run(str(uuid4()))  # type: ignore[attr-defined]
    assert 0 <= countdowns[0] <= 1


def test_a_paused_worker_puts_the_message_back() -> None:
    """While storage denies everything, messages stay in the queue."""
    with pytest.raises(Reject) as caught:
        task(Pipeline(StorageForbidden())).run(str(uuid4()))  # type: ignore[attr-defined]
    assert caught.value.requeue
