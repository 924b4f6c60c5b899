"""Redis may crash, forget, go away or fill up: the ledger still knows every image."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.process_crew import changed
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ingest.events import own_event
from worker.ingest.reconcile import reconcile
from worker.ledger.interface import State, Upload
from worker.queue.publisher import CeleryPublisher

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.localstack import LocalStack
    from worker.settings import Settings


def upload(site: Site, first: int, count: int) -> list[str]:
    """Upload different images and return their keys."""
    keys = [f"{index}.png" for index in range(first, first + count)]
    for index, key in enumerate(keys):
        site.upload(key, png(first + index))
    return keys


def register(site: Site, first: int, count: int) -> list[str]:
    """Store and register images whose messages cannot be sent now; return their keys."""
    keys = [f"{index}.png" for index in range(first, first + count)]
    for index, key in enumerate(keys):
        facts = site.storage.put(site.bucket, key, png(first + index), content_type="image/png")
        site.ledger.register([Upload(bucket=site.bucket, key=key, etag=facts.etag)])
    return keys


def test_a_killed_redis_with_its_file_loses_nothing(
    site: Site, crew: Crew, accounts: Accounts, stack: LocalStack
) -> None:
    """`kill -9` in the middle of the work; Redis comes back with its append-only file."""
    keys = upload(site, 0, 40)
    worker = crew.worker()
    eventually(lambda: bool(worker.events("verdict_stored")), timeout_s=60, what="a first verdict")
    stack.redis.kill()
    stack.redis.start()
    keys += upload(site, 40, 10)
    assert accounts.check(keys, timeout_s=90) == {State.SCORED: len(keys)}
    assert worker.process.poll() is None


def test_a_worker_whose_acknowledgement_was_lost_takes_messages_again(
    site: Site, crew: Crew, accounts: Accounts, stack: LocalStack, settings: Settings
) -> None:
    """Redis is away when the one message under way is acknowledged: its place is not lost."""
    keys = upload(site, 0, 5)
    single = changed(settings, "scoring", threads=1, max_batch=1)
    worker = crew.worker("--stop-at", "acknowledging", settings=single)
    crew.wait_until_stopped(worker)
    stack.redis.kill()
    crew.resume(worker)
    eventually(lambda: "Couldn't ack" in worker.log.read_text(), what="a failed acknowledgement")
    stack.redis.start()
    assert accounts.check(keys, timeout_s=90) == {State.SCORED: len(keys)}


def test_what_redis_forgot_is_found_in_the_bucket(
    site: Site,
    crew: Crew,
    accounts: Accounts,
    stack: LocalStack,
    redis_client: Redis,
    settings: Settings,
) -> None:
    """Without its file Redis loses the queue and the ingest list; `reconcile` adds what is left."""
    begun = datetime.now(UTC) - timedelta(minutes=1)
    keys = upload(site, 0, 10)
    for index in range(10, 20):
        key = f"{index}.png"
        facts = site.storage.put(site.bucket, key, png(index), content_type="image/png")
        event = own_event(Upload(bucket=site.bucket, key=key, etag=facts.etag))
        redis_client.rpush(settings.redis.key_prefix + "ingest", event)
        keys.append(key)
    stack.redis.kill()
    stack.redis.erase()
    stack.redis.start()
    assert accounts.states() == {State.PENDING: 10}
    counts = reconcile(
        site.bucket,
        since=begun,
        storage=site.storage,
        ledger=site.ledger,
        publisher=CeleryPublisher(site.celery, site.ledger),
    )
    assert (counts.listed, counts.added, counts.known) == (20, 10, 10)
    crew.worker()
    assert accounts.check(keys) == {State.SCORED: len(keys)}


@pytest.mark.parametrize("outage_s", [3, pytest.param(60, marks=pytest.mark.full)])
def test_redis_away_delays_only(
    outage_s: int, site: Site, crew: Crew, accounts: Accounts, stack: LocalStack
) -> None:
    """Uploads registered while Redis is away are found by the sweeper when it is back."""
    keys = upload(site, 0, 20)
    worker = crew.worker()
    eventually(lambda: bool(worker.events("verdict_stored")), timeout_s=60, what="a first verdict")
    stack.redis.kill()
    keys += register(site, 20, 10)
    accounts.sweep_for(outage_s)
    assert accounts.states()[State.PENDING] >= 10
    assert worker.process.poll() is None
    stack.redis.start()
    assert accounts.check(keys, timeout_s=100) == {State.SCORED: len(keys)}


def test_a_full_redis_delays_only(
    site: Site, crew: Crew, accounts: Accounts, redis_client: Redis
) -> None:
    """At maxmemory Redis refuses new messages; work and sweeping go on."""
    keys = upload(site, 0, 20)
    worker = crew.worker()
    eventually(lambda: bool(worker.events("verdict_stored")), timeout_s=60, what="a first verdict")
    redis_client.config_set("maxmemory", 1)
    try:
        keys += register(site, 20, 10)
        eventually(
            lambda: bool(worker.events("redis_memory_exhausted")), what="a message without room"
        )
    finally:
        redis_client.config_set("maxmemory", 0)
    assert accounts.check(keys, timeout_s=90) == {State.SCORED: len(keys)}
    assert worker.process.poll() is None
