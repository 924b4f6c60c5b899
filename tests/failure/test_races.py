"""Messages that come twice, workers whose clocks are wrong: every image still has one verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.site import Site, png
from worker.ledger import State

if TYPE_CHECKING:
    from tests.failure.accounting import Accounts
    from tests.failure.faults import Crew


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
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_worker_whose_clock_is_an_hour_off_harms_nobody(
    hours: int, site: Site, crew: Crew, accounts: Accounts
) -> None:
    """Messages may come back too early for the others; leases are judged by Postgres' clock."""
    keys = [f"{index}.png" for index in range(40)]
    crew.worker("--clock-off", str(3600 * hours))
    crew.worker()
    for index, key in enumerate(keys):
        site.upload(key, png(index))
    assert accounts.check(keys, timeout_s=100) == {State.SCORED: len(keys)}
    assert site.ledger.backlog().recent_deaths == 0
