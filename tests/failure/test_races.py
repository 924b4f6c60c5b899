"""Messages that come twice, workers whose clocks are wrong: every image still has one verdict."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from tests.support.faults.process_crew import changed, clock_off
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import State
from worker.ledger.tables import LeaseRow

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.settings import Settings


def test_sweeping_and_redelivery_at_once_give_one_verdict(
    site: Site, crew: Crew, accounts: Accounts
) -> None:
    """A killed worker's messages come back while the sweeper sends others for the same images."""
    keys = [f"{index}.png" for index in range(12)]
    images = [site.upload(key, png(index)) for index, key in enumerate(keys)]
    crew.kill_when_stopped(crew.worker("--stop-at", "forward"))
    for image_id in images:
        site.send(image_id)
    crew.worker()
    crew.worker()
    assert accounts.check(keys) == {State.SCORED: len(keys)}


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_worker_whose_clock_is_an_hour_off_harms_nobody(
    hours: int, site: Site, crew: Crew, accounts: Accounts, settings: Settings, engine: Engine
) -> None:
    """Messages come back much too early; leases are judged by Postgres' clock, so one each."""
    keys = [f"{index}.png" for index in range(48)]
    long = changed(settings, "scoring", lease_s=60.0)
    slow = ("--forward-s", "1.0")  # what comes too early meets an image under way
    off = crew.worker(*slow, settings=long, environment=clock_off(hours)).wait_until_ready()
    (ready,) = off.events("worker_ready")
    told = datetime.fromisoformat(ready["timestamp"]) - datetime.now(UTC)
    assert abs(told - timedelta(hours=hours)) < timedelta(minutes=10)
    for index, key in enumerate(keys[:24]):
        site.upload(key, png(index))
    eventually(lambda: bool(off.events("verdict_stored")), timeout_s=60, what="a verdict")
    true = crew.worker(*slow, settings=long).wait_until_ready()
    for index, key in enumerate(keys[24:], start=24):
        site.upload(key, png(index))
    assert accounts.check(keys, timeout_s=100) == {State.SCORED: len(keys)}
    assert off.events("image_leased_elsewhere") + true.events("image_leased_elsewhere")
    assert (off.process.poll(), true.process.poll()) == (None, None)
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(LeaseRow)) == len(keys)
