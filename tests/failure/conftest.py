"""Fixtures of the failure tests: short leases and time-outs, a crew of processes, the accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.faults.accounting import Accounts
from tests.support.faults.process_crew import Crew, changed
from tests.support.upload_site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.settings import Settings


LONGEST_S = 1200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that they can be run, or left out, together.

    Each has long enough for a machine that is busy with other things: what is stuck fails by itself
    as soon as it idles.
    """
    for item in items:
        if "/tests/failure/" in item.path.as_posix():
            item.add_marker(pytest.mark.failure)
            chosen = item.get_closest_marker("timeout")
            seconds = chosen.args[0] if chosen is not None else 0
            item.add_marker(pytest.mark.timeout(max(LONGEST_S, 2 * seconds)), append=False)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The test's own settings, with a visibility timeout and leases that tests can wait for."""
    settings = changed(settings, "queue", visibility_timeout_s=2, sweep_every_s=1.0)
    settings = changed(settings, "scoring", lease_s=6.0, threads=4, max_batch=4, max_wait_s=0.05)
    return changed(settings, "intake", timeout_s=2.0, processes=2)


@pytest.fixture
def site(settings: Settings, engine: Engine) -> Site:
    """A platform on this test's own services."""
    return Site(settings, engine)


@pytest.fixture
def crew(settings: Settings) -> Iterator[Crew]:
    """The processes of this test."""
    with Crew(settings) as crew:
        yield crew


@pytest.fixture
def accounts(settings: Settings, engine: Engine) -> Iterator[Accounts]:
    """The books of this test."""
    accounts = Accounts(settings, engine)
    yield accounts
    accounts.close()
