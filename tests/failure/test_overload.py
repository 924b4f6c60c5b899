"""More than a deployment can do, and workers that do nothing: what waits, waits in order, once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from tests.support.faults.footprint import footprint
from tests.support.faults.process_crew import changed
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ingest.events import own_event
from worker.ledger.interface import State, Upload
from worker.ledger.tables import Image
from worker.queue import names as queues
from worker.queue.broker_state import RedisBrokerState

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.settings import Settings

_MIB = 2**20
_UPLOADS = 600
#: More than so many uploads wait before it is called a queue.
_HEAD_START = 40
#: What a message becomes: every delivery logs one of these.
_DELIVERED = (
    "verdict_stored",
    "image_already_ended",
    "image_leased_elsewhere",
    "lease_released",
    "image_ended",
)


class Platform:
    """Uploads large images whose files are small, by way of the ingest list."""

    def __init__(self, site: Site, redis: Redis) -> None:
        self._site = site
        self._redis = redis
        self._ingest = site.settings.redis.key_prefix + site.settings.redis.ingest_key
        # Three million bytes decoded: a process that kept what waits would be seen to grow.
        self._body = png(side=1024)
        self.keys: list[str] = []

    def upload(self, *, priority: bool = False) -> str:
        """Store an image, different by its last bytes only, and announce it."""
        key = f"{len(self.keys)}{'-first' if priority else ''}.png"
        body = self._body + len(self.keys).to_bytes(4, "big")
        facts = self._site.storage.put(self._site.bucket, key, body, content_type="image/png")
        upload = Upload(bucket=self._site.bucket, key=key, etag=facts.etag, priority=priority)
        self._redis.rpush(self._ingest, own_event(upload))
        self.keys.append(key)
        return key


def overtaken(engine: Engine, key: str) -> int:
    """Count the images that ended between a priority image's message and its end."""
    with engine.begin() as connection:
        first = connection.execute(
            select(Image.published_at, Image.state_since).where(Image.key == key)
        ).one()
        counted = connection.execute(
            select(func.count()).where(
                ~Image.priority,
                Image.state_since > first.published_at,
                Image.state_since < first.state_since,
            )
        )
        return int(counted.scalar_one())


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_twice_what_the_workers_can_do(
    site: Site,
    settings: Settings,
    crew: Crew,
    accounts: Accounts,
    redis_client: Redis,
    engine: Engine,
) -> None:
    """The queue grows and nothing else does; priority uploads pass; all end, by one message each.

    Messages wait several times as long as the sweeper waits for one.
    """
    patient = changed(settings, "queue", visibility_timeout_s=10, sweep_every_s=1.0)
    patient = changed(patient, "scoring", lease_s=8.0)
    bridge, beat = crew.bridge(settings=patient), crew.service("beat", settings=patient)
    worker = crew.worker("--forward-s", "0.8", settings=patient).wait_until_ready()
    messages, platform = RedisBrokerState(settings.redis), Platform(site, redis_client)
    services = {"bridge": bridge, "beat": beat, "worker": worker}
    tick, early, peak = threading.Event(), {}, 0
    while len(platform.keys) < _UPLOADS:
        sent, ended = len(platform.keys), accounts.states()[State.SCORED]
        if sent > 2 * ended + _HEAD_START:
            tick.wait(0.05)
            continue
        priority = sent % 300 >= 260
        platform.upload(priority=priority)
        if sent == _UPLOADS // 4:
            early = {name: footprint(service) for name, service in services.items()}
        peak = max(peak, messages.waiting())
    late = {name: footprint(service) for name, service in services.items()}
    assert peak > _UPLOADS // 4
    states = accounts.check(platform.keys, timeout_s=120)
    assert states == {State.SCORED: _UPLOADS}
    delivered = sum(len(worker.events(name)) for name in _DELIVERED)
    assert _UPLOADS <= delivered < 1.1 * _UPLOADS
    for key in (key for key in platform.keys if "first" in key):
        assert overtaken(engine, key) <= 3 * settings.scoring.threads, key
    grown = {
        name: (late[name].resident_bytes - early[name].resident_bytes) / _MIB for name in services
    }
    assert all(growth < 64 for growth in grown.values()), grown


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_stalled_worker_gathers_no_messages(
    site: Site, settings: Settings, crew: Crew, accounts: Accounts, redis_client: Redis
) -> None:
    """Images time out, are tried again, given up and swept: still about one message each.

    The sweeper looks all the time and waits for 4 s only.
    """
    quick = changed(settings, "queue", visibility_timeout_s=60)
    quick = changed(quick, "scoring", lease_s=2.0, forward_timeout_s=600.0)
    prefix = settings.redis.key_prefix
    stalled = crew.worker("--forward-s", "600", settings=quick)
    keys = [f"{index}.png" for index in range(30)]
    for index, key in enumerate(keys):
        site.upload(key, png(index))
    eventually(lambda: bool(stalled.events("lease_released")), timeout_s=300, what="a first retry")
    tick, most, end = threading.Event(), 0, time.monotonic() + 25
    while time.monotonic() < end:
        accounts.sweeper.tick()
        with redis_client.pipeline() as pipeline:
            for queue in queues.PENDING_QUEUES:
                pipeline.llen(prefix + queue)
            pipeline.hlen(f"{prefix}unacked")
            most = max(most, sum(pipeline.execute()))
        tick.wait(0.2)
    assert len(keys) <= most <= 1.2 * len(keys)
    crew.kill(stalled)
    crew.worker()
    assert accounts.check(keys, timeout_s=120) == {State.SCORED: len(keys)}
