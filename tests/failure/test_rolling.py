"""A deployment changes its schema and its workers while images come: nothing is lost on the way.

A rollout migrates first. A worker of today that starts before its migration takes nothing and ends;
and today's works through what a later release may do to the schema under it. An earlier release's
worker under today's migrations is in tests/migrations/test_earlier_release.py.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.database.engine import change_schema, connect, downgrade, migrate
from worker.ledger.interface import State

if TYPE_CHECKING:
    from tests.support.faults.accounting import Accounts
    from tests.support.faults.process_crew import Crew
    from worker.settings import Settings

#: What a later release may do before its code runs: see the first migration.
EXPANSION = (
    "SET LOCAL ROLE unlatent_owner",
    "ALTER TABLE app.images ADD COLUMN later text, ADD COLUMN later_count int NOT NULL DEFAULT 0",
    "ALTER TABLE app.leases ADD COLUMN later text",
    "ALTER TABLE app.verdicts ADD COLUMN later jsonb NOT NULL DEFAULT '{}'",
    "ALTER TABLE app.images ADD CONSTRAINT later CHECK (later_count >= 0) NOT VALID",
    "CREATE TABLE app.later (id bigint PRIMARY KEY, image_id uuid REFERENCES app.images)",
)


#: The last schema that today's worker cannot use: it has no place for a challenger.
TOO_OLD = "0004"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_schema_and_the_workers_change_under_load(
    site: Site,
    crew: Crew,
    accounts: Accounts,
    settings: Settings,
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
    engine = connect(owner, application_name="expansion")

    def expand() -> None:
        with engine.begin() as connection:
            for statement in EXPANSION:
                connection.exec_driver_sql(statement)

    change_schema(expand)
    engine.dispose()
    second = crew.worker().wait_until_ready()
    upload(20)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(90) == 0
    upload(20)
    assert accounts.check(keys, timeout_s=120) == {State.SCORED: len(keys)}
    assert second.process.poll() is None
    assert site.ledger.backlog().recent_deaths == 0
