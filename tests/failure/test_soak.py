"""Steady work for minutes: memory, threads, handles and sockets end as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.footprint import Footprint, footprint
from tests.support.faults.process_crew import changed
from worker.ledger.interface import State
from worker.stress.load import Step, items
from worker.stress.run import Stress

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from tests.support.upload_site import Site
    from worker.settings import Settings

_LOAD = Step(rate_per_s=4.0, duration_s=240.0)
#: Samples a second apart: about the end of the first minute, and as many before the load ends.
_MINUTE_ONE, _END = slice(45, 75), slice(-45, -15)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_four_minutes_of_steady_load_leave_no_trace(
    settings: Settings,
    site: Site,
    crew: Crew,
    accounts: Accounts,
    redis_client: Redis,
    engine: Engine,
) -> None:
    """The memory that is kept ends within 5 % of minute one's, and handles are those of pools.

    What is kept is the least of half a minute: what is in work comes and goes with the load, and
    how much that is depends on the machine. Threads, handles and sockets may be more by what a pool
    holds: it fills when so many happen to be wanted at once, whenever that is. A leak, by image or
    by sweep, is hundreds.
    """
    patient = changed(settings, "queue", visibility_timeout_s=60)
    patient = changed(patient, "scoring", lease_s=60.0)
    patient = changed(patient, "intake", timeout_s=20.0)
    services = {
        "bridge": crew.bridge(settings=patient),
        "beat": crew.service("beat", settings=patient),
        "worker": crew.worker(settings=patient).wait_until_ready(),
    }
    samples: dict[str, list[Footprint]] = {name: [] for name in services}
    load = items((_LOAD,), bad_share=0.05, duplicate_share=0.1, seed=1)
    stress = Stress(settings, engine=engine, redis=redis_client, storage=site.storage)
    tick = Event()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(stress.run, load, drain_s=300)
        while not running.done():
            for name, service in services.items():
                samples[name].append(footprint(service))
            tick.wait(1.0)
    outcome = running.result()
    assert (outcome.lost, outcome.extra_rows, outcome.double_verdicts) == (0, 0, 0)
    assert accounts.states() == outcome.states
    assert outcome.states[State.FAILED] == outcome.bad_sent
    for name, seen in samples.items():
        before, after = (
            min(sample.resident_bytes for sample in seen[part]) for part in (_MINUTE_ONE, _END)
        )
        assert after <= 1.05 * before, (name, before, after)
        spare = settings.postgres.pool_size
        of_pools = {"threads": settings.scoring.threads, "handles": spare, "sockets": spare}
        for what, more in of_pools.items():
            counts = [getattr(sample, what) for sample in seen]
            most = max(counts[: _MINUTE_ONE.stop]) + more
            assert max(counts[_END]) <= most, (name, what, counts)
