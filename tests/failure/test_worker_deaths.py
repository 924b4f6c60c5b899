"""A worker that is killed, stopped or stuck in any phase loses nothing and blames no innocent."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.stopping_process import WORKER_PHASES
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import State

if TYPE_CHECKING:
    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew


#: So many workers start at once: all eight would be many for a small machine.
HALVES = {
    "before the device": list(WORKER_PHASES)[:4],
    "from the device on": list(WORKER_PHASES)[4:],
}


def upload(site: Site, count: int) -> list[str]:
    """Upload different images and return their keys."""
    keys = [f"{index}.png" for index in range(count)]
    for index, key in enumerate(keys):
        site.upload(key, png(index))
    return keys


@pytest.mark.timeout(600)
@pytest.mark.parametrize("half", HALVES)
def test_a_worker_killed_in_any_phase_loses_nothing(
    half: str, site: Site, crew: Crew, accounts: Accounts
) -> None:
    """One successor of four workers ends every image once, and none in quarantine.

    Each of the four is killed in another phase, with images of its own in hand.
    """
    doomed = [crew.worker("--stop-at", phase) for phase in HALVES[half]]
    eventually(
        lambda: all(worker.ready for worker in doomed), timeout_s=300, what="four ready workers"
    )
    keys = upload(site, 40)
    for worker in doomed:
        crew.wait_until_stopped(worker)
    for worker in doomed:
        crew.kill(worker)
    crew.worker()
    states = accounts.check(keys, processes=crew.left_behind)
    assert states == {State.SCORED: len(keys)}


def test_a_worker_told_to_stop_leaves_a_full_queue_to_the_next(
    site: Site, crew: Crew, accounts: Accounts
) -> None:
    """SIGTERM in the middle of a full queue: what was begun is done, nothing counts as a death."""
    keys = upload(site, 60)
    worker = crew.worker()
    eventually(lambda: bool(worker.events("verdict_stored")), timeout_s=60, what="a first verdict")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert site.ledger.backlog().leased == 0
    crew.worker()
    assert accounts.check(keys) == {State.SCORED: len(keys)}
    assert site.ledger.backlog().recent_deaths == 0
