"""The plan against a simulated queue, and the numbers against a worker's own metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from detection.errors import SettingsError
from worker.cli import build_app
from worker.cli.context import Context
from worker.monitoring.capacity import Load, measured, plan
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path


def longest_wait_s(load: Load, *, workers: int, helpers: int, speed: float) -> float:
    """Simulate a sudden peak second by second: helpers come after `ready_s`."""
    waiting = longest = 0.0
    for second in range(4000):
        able = speed * (workers if second < load.ready_s else helpers)
        waiting = max(0.0, waiting + load.peak_per_s - able)
        longest = max(longest, waiting / able)
    return longest


@pytest.mark.parametrize("peak", [40.0, 300.0, 5000.0])
@pytest.mark.parametrize("speed", [7.0, 90.0])
def test_the_least_number_of_workers_holds_a_sudden_peak(peak: float, speed: float) -> None:
    """With `min_workers` the newest image waits no longer than allowed, with one fewer it does."""
    load = Load(peak_per_s=peak, wait_s=60, ready_s=180)
    wanted = plan(load, per_worker_per_s=speed)
    wait_s = longest_wait_s(
        load, workers=wanted.min_workers, helpers=wanted.max_workers, speed=speed
    )
    assert wait_s <= load.wait_s
    if wanted.min_workers > 1:
        worse_s = longest_wait_s(
            load, workers=wanted.min_workers - 1, helpers=wanted.max_workers, speed=speed
        )
        assert worse_s > load.wait_s


def test_the_greatest_number_leaves_devices_some_rest() -> None:
    """At the peak the devices are busy for the stated share of the time, and not with one fewer."""
    wanted = plan(Load(peak_per_s=100, wait_s=60, ready_s=60, busy=0.7), per_worker_per_s=9)
    assert 100 / (9 * wanted.max_workers) <= 0.7 < 100 / (9 * (wanted.max_workers - 1))


def test_an_outage_is_caught_up_with_what_is_left_over() -> None:
    """Simulated: what came in an outage of 100 s is gone after the stated time."""
    load = Load(peak_per_s=50, wait_s=60, ready_s=60)
    wanted = plan(load, per_worker_per_s=10)
    waiting, seconds = 50.0 * 100, 0
    while waiting > 0:
        waiting += 50 - 10 * wanted.max_workers
        seconds += 1
    assert seconds == math.ceil(100 * wanted.catch_up_s_per_outage_s)


def page(batches: int) -> str:
    """Return the metrics of a worker that ran batches of 8 in 0.4 s, stored in 0.1 s."""
    metrics = Metrics()
    for _ in range(batches):
        metrics.batch_size.observe(8)
        metrics.forward.observe(0.4)
        metrics.persist.observe(0.1)
    return generate_latest(metrics.registry).decode()


def test_a_workers_own_metrics_say_what_it_can_do() -> None:
    """Batches of 8 every half second are 16 images a second, however long it idled between."""
    assert measured(page(50)) == pytest.approx(16)


@pytest.mark.parametrize("content", ["", page(3)])
def test_too_little_to_go_by_is_refused(content: str) -> None:
    """Metrics of something else, or of three batches, give no plan."""
    with pytest.raises(SettingsError):
        measured(content)


def test_the_command_prints_the_settings_of_the_autoscaler(tmp_path: Path) -> None:
    """From a saved page of metrics to the numbers that go into the ScaledObject."""
    file = tmp_path / "metrics.txt"
    file.write_text(page(50))
    arguments = ["capacity", "--peak", "100", "--metrics", str(file), "--price", "2"]
    done = CliRunner().invoke(build_app(), arguments, obj=Context(), catch_exceptions=False)
    assert done.exit_code == 0
    lines = {line[:34].strip(): line[35:] for line in done.output.splitlines()}
    assert lines["one worker"] == "16.0 images/s"
    assert lines["minReplicaCount"] == "5"
    assert lines["maxReplicaCount"] == "9"
    assert lines["threshold of the trigger `images`"] == "960"
    assert float(lines["1,000 images"]) == pytest.approx(1000 * 9 * 2 / 3600 / 100)
