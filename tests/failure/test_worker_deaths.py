"""A worker that is killed, stopped or stuck in any phase loses nothing and blames no innocent."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.failure.faulty import WORKER_PHASES
from tests.site import Site, png
from tests.waiting import eventually
from worker.ledger import State

if TYPE_CHECKING:
    from tests.failure.accounting import Accounts
    from tests.failure.faults import Crew


def upload(site: Site, count: int) -> list[str]:
    """Upload different images and return their keys."""
    keys = [f"{index}.png" for index in range(count)]
    for index, key in enumerate(keys):
        site.upload(key, png(index))
    return keys


@pytest.mark.parametrize("phase", WORKER_PHASES)
def test_a_worker_killed_in_any_phase_loses_nothing(
    phase: str, site: Site, crew: Crew, accounts: Accounts
) -> None:
    """The successor of a killed worker ends every image once, and none in quarantine."""
    keys = upload(site, 10)
    crew.kill_when_stopped(crew.worker("--stop-at", phase))
    crew.worker()
    states = accounts.check(keys, processes=crew.left_behind)
    assert states == {State.SCORED: len(keys)}


def test_a_worker_told_to_stop_leaves_a_full_queue_to_the_next(
    site: Site, crew: Crew, accounts: Accounts
) -> None:
    """SIGTERM in the middle of a full queue: what was begun is done, nothing counts as a death."""
    keys = upload(site, 60)
    worker = crew.worker()
    eventually(lambda: bool(worker.events("verdict")), timeout_s=60, what="a first verdict")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert site.ledger.backlog().leased == 0
    crew.worker()
    assert accounts.check(keys) == {State.SCORED: len(keys)}
    assert site.ledger.backlog().recent_deaths == 0
