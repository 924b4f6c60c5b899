"""Object storage that is slow, broken, throttling or changing costs time, never an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.faults import proxy as faults
from tests.support.faults.process_crew import changed
from tests.support.faults.proxy import Proxy
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.localstack import LocalStack
    from worker.settings import Settings

FAULTS = {
    "slow": faults.trickle,
    "broken": faults.status("500 Internal Server Error", "<Code>InternalError</Code>"),
    "throttling": faults.status("503 Slow Down", "<Code>SlowDown</Code>"),
    "resetting": faults.reset_in_body,
}


@pytest.fixture
def proxy(stack: LocalStack) -> Iterator[Proxy]:
    """A proxy between the workers and this run's object storage."""
    with Proxy(stack.s3.port) as proxy:
        yield proxy


@pytest.fixture
def behind(settings: Settings, proxy: Proxy) -> Settings:
    """Settings of a worker that reaches object storage through the proxy."""
    return changed(
        settings,
        "s3",
        endpoint_url=f"http://127.0.0.1:{proxy.port}",
        read_timeout_s=1.0,
        fetch_timeout_s=2.0,
    )


@pytest.mark.parametrize(
    "fault",
    [
        "broken",
        pytest.param("slow", marks=pytest.mark.full),
        pytest.param("throttling", marks=pytest.mark.full),
        pytest.param("resetting", marks=pytest.mark.full),
    ],
)
def test_storage_trouble_is_tried_again_until_it_ends(
    fault: str, site: Site, crew: Crew, accounts: Accounts, proxy: Proxy, behind: Settings
) -> None:
    """While storage misbehaves images are given back; when it recovers all get their verdicts."""
    keys = [f"{index}.png" for index in range(6)]
    for index, key in enumerate(keys):
        site.upload(key, png(index))
    proxy.fault = FAULTS[fault]
    worker = crew.worker(settings=behind)
    eventually(lambda: len(worker.events("lease_released")) >= 4, timeout_s=90, what="given back")
    assert proxy.hits >= 4
    assert accounts.states() == {State.PENDING: len(keys)}
    proxy.fault = None
    assert accounts.check(keys, timeout_s=90) == {State.SCORED: len(keys)}
    assert site.ledger.backlog().recent_deaths == 0


def test_an_object_replaced_before_its_fetch_is_superseded_and_the_new_one_scored(
    site: Site, crew: Crew, accounts: Accounts, proxy: Proxy, behind: Settings
) -> None:
    """Each upload of one key is judged by its own bytes or not at all."""

    def replace(request: bytes) -> None:
        if b"/first.png " in request.split(b"\r\n")[0]:
            proxy.before = None
            site.upload("first.png", png(200))

    proxy.before = replace
    replaced = site.upload("first.png", png(100))
    site.upload("other.png", png(50))
    crew.worker(settings=behind)
    states = accounts.check(["first.png", "first.png", "other.png"])
    assert states == {State.SCORED: 2, State.SUPERSEDED: 1}
    assert site.row(replaced).state == State.SUPERSEDED
