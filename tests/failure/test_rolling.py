"""A deployment changes its schema and its workers while images come: nothing is lost on the way.

A rollout migrates first. A worker of today that starts before its migration takes nothing and ends;
one of an earlier release (`tests.support.faults.earlier_release`) works on under the migrations;
and today's works through what a later release may do to the schema under it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import func, select

from tests.support.faults import earlier_release
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.database.engine import downgrade, migrate
from worker.ingest.events import own_event
from worker.ledger.interface import State, Upload
from worker.ledger.tables import VerdictRow

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.localstack import LocalStack
    from worker.settings import Settings

#: What a later release may do before its code runs: see the first migration.
EXPANSION = """
    ALTER TABLE app.images ADD COLUMN later text, ADD COLUMN later_count int NOT NULL DEFAULT 0;
    ALTER TABLE app.leases ADD COLUMN later text;
    ALTER TABLE app.verdicts ADD COLUMN later jsonb NOT NULL DEFAULT '{}';
    ALTER TABLE app.images ADD CONSTRAINT later CHECK (later_count >= 0) NOT VALID;
    CREATE TABLE app.later (id bigint PRIMARY KEY, image_id uuid REFERENCES app.images);
"""


#: The last schema that today's worker cannot use: it has no place for a challenger.
TOO_OLD = "0004"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_schema_and_the_workers_change_under_load(
    site: Site,
    crew: Crew,
    accounts: Accounts,
    settings: Settings,
    stack: LocalStack,
    database: str,
) -> None:
    """A worker too early, the migration, a schema ahead of the code, and a worker replaced."""
    assert settings.postgres.owner_url is not None
    owner = settings.postgres.owner_url.get_secret_value()
    keys: list[str] = []

    def upload(count: int) -> None:
        for _ in range(count):
            keys.append(f"{len(keys)}.png")
            site.upload(keys[-1], png(len(keys)))

    downgrade(owner, TOO_OLD)
    upload(20)
    assert crew.worker().process.wait(90) != 0
    assert accounts.states() == {State.PENDING: len(keys)}
    migrate(owner)
    first = crew.worker()
    eventually(lambda: bool(first.events("verdict_stored")), timeout_s=90, what="a first verdict")
    upload(20)
    with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as superuser:
        superuser.execute("SET ROLE unlatent_owner")
        superuser.execute(EXPANSION)
    second = crew.worker().wait_until_ready()
    upload(20)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(90) == 0
    upload(20)
    assert accounts.check(keys, timeout_s=120) == {State.SCORED: len(keys)}
    assert second.process.poll() is None
    assert site.ledger.backlog().recent_deaths == 0


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_worker_of_an_earlier_release_works_on_under_the_migrations(
    site: Site,
    crew: Crew,
    accounts: Accounts,
    settings: Settings,
    redis_client: Redis,
    engine: Engine,
) -> None:
    """It scores on its own schema and on today's, where moderators find what it says.

    So does the bridge of that release register; today's then take over, and none is lost.
    """
    assert settings.postgres.owner_url is not None
    owner = settings.postgres.owner_url.get_secret_value()
    ingest = settings.redis.key_prefix + settings.redis.ingest_key
    keys: list[str] = []

    def upload(count: int) -> None:
        for _ in range(count):
            key, body = f"{len(keys)}.png", png(len(keys))
            facts = site.storage.put(site.bucket, key, body, content_type="image/png")
            event = own_event(Upload(bucket=site.bucket, key=key, etag=facts.etag))
            redis_client.rpush(ingest, event)
            keys.append(key)

    downgrade(owner, earlier_release.REVISION)
    upload(10)
    bridge = crew.bridge("--earlier")
    old = crew.worker("--earlier", "--forward-s", "0.2")
    eventually(lambda: accounts.states()[State.SCORED] == 10, timeout_s=90, what="its verdicts")
    upload(60)
    migrate(owner)
    done = len(old.events("verdict_stored"))
    assert done < len(keys), "the migrations came after the work"
    eventually(
        lambda: len(old.events("verdict_stored")) >= done + 10,
        timeout_s=90,
        what="verdicts after them",
    )
    with engine.begin() as connection:
        judged = connection.scalar(select(func.count(VerdictRow.tier)))
    assert judged is not None
    assert judged >= 8  # but for a batch that was under way
    upload(10)
    new = crew.worker().wait_until_ready()
    for process in (old.process, bridge.process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    upload(10)
    crew.bridge()
    assert accounts.check(keys, timeout_s=120) == {State.SCORED: len(keys)}
    assert new.events("verdict_stored")
    assert site.ledger.backlog().recent_deaths == 0
