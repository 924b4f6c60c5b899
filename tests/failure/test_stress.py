"""`unlatent stress` against a real deployment: it passes a sound one and fails a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from sqlalchemy import select

from tests.support.faults.process_crew import changed
from tests.support.waiting import eventually
from worker.ledger import tables
from worker.settings import child_environment

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.settings import Settings


def stress(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool to its end."""
    return subprocess.run(
        [sys.executable, "-m", "worker", "stress", *arguments],
        env=child_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_load_is_accounted_for(
    settings: Settings, crew: Crew, accounts: Accounts, engine: Engine, tmp_path: Path
) -> None:
    """The detector ends every upload, and table, JSON and plot say how; a limit can still break."""
    patient = changed(settings, "scoring", lease_s=300.0, max_batch=4, forward_timeout_s=250.0)
    patient = changed(patient, "queue", visibility_timeout_s=600)
    patient = changed(patient, "intake", timeout_s=30.0)
    crew.bridge(settings=patient)
    worker = crew.service("worker", settings=patient)
    eventually(lambda: worker.ready, timeout_s=300, what="a worker with its detector")
    load = ("--bad", "0.3", "--duplicates", "0.5", "--priority", "0.5", "--drain", "600")
    load = (*load, "--seed", "1")
    done = stress(patient, *load, "--load", "1x4,4x1", "--after", "2x2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((tmp_path / "stress.json").read_text())
    assert numbers["uploads_ended"] == sum(numbers["states"].values()) == 12
    assert numbers["states"]["failed"] == sum(numbers["reasons"].values()) == numbers["bad_sent"]
    assert (
        numbers["states"]["scored"]
        == len(worker.events("verdict_stored"))
        == 12 - numbers["bad_sent"]
    )
    assert numbers["events"] == 12 + numbers["duplicates_sent"] > 12
    assert 0 < numbers["p50_s"] <= numbers["p95_s"] <= numbers["p99_s"] < numbers["elapsed_s"]
    assert 0 < numbers["calm_p95_s"] <= numbers["p99_s"]
    assert 0 < numbers["priority_p95_s"] <= numbers["p99_s"]
    with engine.begin() as connection:
        rows = connection.execute(
            select(tables.Image.created_at, tables.Image.state_since).order_by(tables.Image.key)
        ).all()
    # What comes when it is calm again is registered after the end of all the rest.
    assert min(row.created_at for row in rows[8:]) > max(row.state_since for row in rows[:8])
    with Image.open(tmp_path / "stress.png") as plot:
        assert plot.width > plot.height > 0
    table = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert table["p95_s"] == f"{numbers['p95_s']:.3f}"
    assert accounts.states() == numbers["states"]
    slow = stress(patient, *load, "--load", "2x2", "--max-p95", "0.001", "--min-rate", "1000")
    assert slow.returncode == 1
    broken = slow.stderr.splitlines()
    assert [line.split()[2] for line in broken] == ["p95_s", "ended_per_s"], slow.stderr


def test_a_deployment_at_rest_breaks_a_limit(settings: Settings) -> None:
    """What has not ended in time counts as lost; unless asked, no run sends another's uploads."""
    done = stress(settings, "--load", "20x0.3", "--drain", "0", "--bad", "0", "--duplicates", "0")
    assert done.returncode == 1
    assert "limit broken: lost is 6, must be 0" in done.stderr.splitlines()
    table = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert int(table["seed"]) > 1, "by chance only once in two billion runs"
