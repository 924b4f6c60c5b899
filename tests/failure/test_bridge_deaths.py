"""Bridges that are killed between any two steps, and entries that nobody should send."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.faults.stopping_process import BRIDGE_PHASES, SQS_PHASES
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ingest import bridge
from worker.ingest.events import own_event
from worker.ingest.sqs_bridge import open_queue
from worker.ledger.interface import State, Upload

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew


def announce(site: Site, redis: Redis, count: int) -> list[str]:
    """Store images and append their events to the ingest list; return their keys."""
    keys = [f"{index}.png" for index in range(count)]
    for index, key in enumerate(keys):
        facts = site.storage.put(site.bucket, key, png(index), content_type="image/png")
        event = own_event(Upload(bucket=site.bucket, key=key, etag=facts.etag))
        redis.rpush(ingest(site), event)
    return keys


def ingest(site: Site) -> str:
    """Return the key of the ingest list."""
    return site.settings.redis.key_prefix + site.settings.redis.ingest_key


@pytest.mark.parametrize(
    "phase",
    [
        phase if phase == "registered" else pytest.param(phase, marks=pytest.mark.full)
        for phase in BRIDGE_PHASES
    ],
)
def test_a_bridge_killed_between_any_two_steps_loses_nothing(
    phase: str, site: Site, crew: Crew, accounts: Accounts, redis_client: Redis
) -> None:
    """The bridge that comes back under the same name finishes what its predecessor began."""
    keys = announce(site, redis_client, 10)
    crew.kill_when_stopped(crew.bridge("--name", "one", "--stop-at", phase))
    crew.worker()
    crew.bridge("--name", "one")
    states = accounts.check(keys, processes=crew.left_behind)
    assert states == {State.SCORED: len(keys)}


@pytest.mark.parametrize(
    "phase",
    [
        phase if phase in {"taking_in", "taken_in"} else pytest.param(phase, marks=pytest.mark.full)
        for phase in ("registered", "sent", *SQS_PHASES)
    ],
)
def test_a_bridge_on_a_queue_killed_between_any_two_steps_loses_nothing(
    phase: str, site: Site, crew: Crew, accounts: Accounts
) -> None:
    """Messages come again until they are deleted; those that were committed change nothing then."""
    # As long as a test can wait, and no longer than it takes to start another bridge.
    url = f"{site.settings.s3.endpoint_url}/000000000000/{site.bucket}"
    with closing(open_queue(url, site.settings.sqs)) as queue:
        queue.create_queue(QueueName=site.bucket, Attributes={"VisibilityTimeout": "2"})
        keys = [f"{index}.png" for index in range(10)]
        for index, key in enumerate(keys):
            facts = site.storage.put(site.bucket, key, png(index), content_type="image/png")
            event = own_event(Upload(bucket=site.bucket, key=key, etag=facts.etag))
            queue.send_message(QueueUrl=url, MessageBody=event.decode())
        crew.kill_when_stopped(crew.bridge("--sqs", url, "--stop-at", phase))
        crew.worker()
        crew.bridge("--sqs", url)
        states = accounts.check(keys, processes=crew.left_behind)
        assert states == {State.SCORED: len(keys)}
        eventually(lambda: _left(queue, url) == 0, what="an empty queue")


def _left(queue: Any, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = queue.get_queue_attributes(QueueUrl=url, AttributeNames=names)
    return sum(int(answer["Attributes"][name]) for name in names)


@pytest.mark.full
def test_two_bridges_share_a_list_and_one_inherits_the_others(
    site: Site, crew: Crew, accounts: Accounts, redis_client: Redis
) -> None:
    """A dead bridge's entries are taken over once its sign of life has expired."""
    keys = announce(site, redis_client, 250)
    crew.kill_when_stopped(crew.bridge("--name", "one", "--stop-at", "taken"))
    # Its sign of life expires by Redis' clock; that minute is cut short here.
    assert redis_client.delete(f"{ingest(site)}:bridge:one") == 1
    assert bridge.ALIVE_S > 0
    crew.worker()
    crew.bridge("--name", "two")
    crew.bridge("--name", "three")
    assert accounts.check(keys, timeout_s=120) == {State.SCORED: len(keys)}


def test_garbage_and_huge_entries_are_refused_and_hold_up_nobody(
    site: Site, crew: Crew, accounts: Accounts, redis_client: Redis
) -> None:
    """A 100 MB entry and bytes of every kind are kept, truncated, with their reasons."""
    redis_client.rpush(ingest(site), b"x" * 100_000_000)
    redis_client.rpush(ingest(site), b"\xff\xfe\x00", b"{}", b"[]", b"null", b'{"v":1}', b"")
    keys = announce(site, redis_client, 3)
    crew.bridge("--name", "one")
    crew.worker()
    assert accounts.check(keys) == {State.SCORED: len(keys)}
    rejected = f"{ingest(site)}:rejected"
    eventually(lambda: redis_client.llen(rejected) >= 5, what="the refused entries")
    longest = max(len(entry) for entry in redis_client.lrange(rejected, 0, -1))
    assert longest < 8 * bridge.KEPT_BYTES
