"""A populated database of an earlier release is upgraded, with that release's worker beside it.

The release is kept in `release_30a0aa0`: a dump with rows in every table, and its code.
"""

from __future__ import annotations

import gzip
import signal
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from detection.bundle import load_bundle
from tests.support.faults.process_crew import Crew, changed
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.database.engine import migrate
from worker.ingest.events import own_event
from worker.ledger.interface import Upload
from worker.models.bundle_store import BundleStore
from worker.models.registry import ModelsRegistry, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from redis import Redis
    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings

RELEASE = Path(__file__).with_name("release_30a0aa0")

#: What a query finds in two databases of one schema: columns by name, not by age.
SCHEMA = {
    "columns": """
        SELECT table_schema, table_name, column_name, data_type, is_nullable, column_default
        FROM information_schema.columns WHERE table_schema IN ('app', 'moderation')""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'app'::regnamespace""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'app'",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'moderation'",
    "functions": """
        SELECT oid::regprocedure::text, pg_get_functiondef(oid), proowner::regrole::text,
            (SELECT string_agg(acl::text, ' ' ORDER BY acl::text) FROM unnest(proacl) acl)
        FROM pg_proc
        WHERE pronamespace IN ('app'::regnamespace, 'moderation'::regnamespace)""",
    "triggers": """
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger
        WHERE NOT tgisinternal AND tgrelid::regclass::text LIKE 'app.%'""",
    "rights": """
        SELECT relname, relowner::regrole::text,
            (SELECT string_agg(acl::text, ' ' ORDER BY acl::text) FROM unnest(relacl) acl)
        FROM pg_class
        WHERE relnamespace IN ('app'::regnamespace, 'moderation'::regnamespace)
            AND relkind IN ('r', 'v')""",
    "comments": """
        SELECT objoid::regclass::text, objsubid, description FROM pg_description
        WHERE classoid = 'pg_class'::regclass
            AND objoid IN (
                SELECT oid FROM pg_class WHERE relnamespace = 'moderation'::regnamespace
            )""",
}

#: What was said and decided: the upgrade may add to it, and change none of it.
KEPT = {
    "images": "SELECT id, bucket, key, etag, state, reason, sha256, source FROM app.images",
    "verdicts": "SELECT id, image_id, model_version, role, score, label, tier FROM app.verdicts",
    "decisions": "SELECT id, image_id, moderator, decision, reason_code FROM app.decisions",
    "appeals": "SELECT id, appeal_id, event FROM app.appeals",
    "policies": "SELECT id, source, review, flag, flag_high FROM app.policies",
    "queue": "SELECT image_id, queue, rank_at FROM app.reviews",
    "audit": "SELECT id, actor, action, image_id, from_state, to_state FROM app.audit_log",
    "holds": "SELECT id, image_id, lifted_at FROM app.legal_holds",
}
SHOWN = {"verdicts": "SELECT image_id, score, label, tier, decision FROM moderation.verdicts"}


@pytest.fixture
def database(stack: LocalStack) -> Iterator[str]:
    """Name of a database as that release left it."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(stack.postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" OWNER unlatent_owner')
    dump = gzip.decompress((RELEASE / "database.sql.gz").read_bytes())
    with psycopg.connect(stack.postgres.dsn(name), autocommit=True) as connection:
        connection.execute(dump)
    yield name
    stack.database.drop(name)


def found(connection: psycopg.Connection, queries: dict[str, str]) -> dict[str, set[Any]]:
    """Return the rows of every query."""
    return {name: set(connection.execute(query.encode())) for name, query in queries.items()}


def test_an_upgraded_database_is_like_a_new_one(
    owner_url: str, superuser: psycopg.Connection, stack: LocalStack
) -> None:
    """Tables, rights, views, functions and triggers are those of a database made today."""
    migrate(owner_url)
    upgraded = found(superuser, SCHEMA)
    with psycopg.connect(stack.postgres.dsn("unlatent")) as connection:
        new = found(connection, SCHEMA)
    for name, rows in new.items():
        assert upgraded[name] == rows, name


def test_nothing_that_was_said_is_lost(owner_url: str, superuser: psycopg.Connection) -> None:
    """Every row is there after the upgrade, and says what it said."""
    before = found(superuser, KEPT)
    assert all(before.values())
    migrate(owner_url)
    for name, rows in found(superuser, KEPT).items():
        assert rows == before[name], name


def test_a_moderator_sees_what_they_saw(owner_url: str, superuser: psycopg.Connection) -> None:
    """The views show a lead of that release the same verdicts, tiers and decisions."""
    superuser.execute("CREATE ROLE moderator_1 IN ROLE moderator")
    try:
        superuser.execute("SET SESSION AUTHORIZATION moderator_1")
        before = found(superuser, SHOWN)
        assert before["verdicts"]
        migrate(owner_url)
        assert found(superuser, SHOWN) == before
    finally:
        superuser.execute("RESET SESSION AUTHORIZATION")
        superuser.execute("DROP ROLE moderator_1")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Folder with the code of that release."""
    folder = tmp_path / "release"
    with tarfile.open(RELEASE / "code.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """This test's services, with small batches and the bundles in its bucket."""
    cache = settings.observability.run_dir.with_name("models")
    settings = changed(settings, "training", bucket=settings.s3.buckets[0])
    return changed(settings, "scoring", threads=4, max_batch=4, max_wait_s=0.05, cache=cache)


@pytest.fixture
def crew(settings: Settings) -> Iterator[Crew]:
    """The processes of this test."""
    with Crew(settings) as crew:
        yield crew


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_worker_of_that_release_works_on(
    crew: Crew, code: Path, settings: Settings, engine: Engine, redis_client: Redis
) -> None:
    """Its worker and its bridge go on under the migrations, and today's take over from them.

    Moderators find what it says after the upgrade as before: every verdict has its tier.
    """
    site = Site(settings, engine)
    promote_something(engine, site)
    ingest = settings.redis.key_prefix + settings.redis.ingest_key
    keys: list[str] = []

    def upload(count: int) -> None:
        for _ in range(count):
            key, body = f"{len(keys)}.png", png(len(keys))
            facts = site.storage.put(site.bucket, key, body, content_type="image/png")
            redis_client.rpush(
                ingest, own_event(Upload(bucket=site.bucket, key=key, etag=facts.etag))
            )
            keys.append(key)

    def scored() -> int:
        with engine.begin() as connection:
            return connection.execute(SCORED, {"bucket": site.bucket}).one().scored

    upload(10)
    bridge = crew.earlier(code, "bridge")
    old = crew.earlier(code, "worker", "--forward-s", "0.2")
    eventually(lambda: scored() == 10, timeout_s=90, what="verdicts on the schema of that release")
    upload(60)
    assert settings.postgres.owner_url is not None
    migrate(settings.postgres.owner_url.get_secret_value())
    done = scored()
    assert done < len(keys), "the migrations came after the work"
    eventually(lambda: scored() >= done + 10, timeout_s=90, what="verdicts after the migrations")
    new = crew.worker().wait_until_ready()
    for process in (old.process, bridge.process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    upload(10)
    crew.bridge()
    eventually(lambda: scored() == len(keys), timeout_s=120, what="all verdicts")
    assert new.events("verdict_stored")
    with engine.begin() as connection:
        counts = connection.execute(SCORED, {"bucket": site.bucket}).one()
    assert (counts.images, counts.verdicts, counts.with_tier) == (len(keys),) * 3
    assert site.ledger.backlog().recent_deaths == 0


SCORED = text(
    "SELECT count(DISTINCT i.id) AS images, count(v.id) AS verdicts, count(v.tier) AS with_tier,"
    " count(DISTINCT i.id) FILTER (WHERE i.state = 'scored') AS scored"
    " FROM app.images i LEFT JOIN app.verdicts v ON v.image_id = i.id WHERE i.bucket = :bucket"
)


def promote_something(engine: Engine, site: Site) -> None:
    """Make a bundle of that release champion, in place of the dump's, whose files are gone."""
    bundle = load_bundle(RELEASE / "bundle")
    uri = BundleStore(site.storage, site.bucket).upload(bundle)
    registry = ModelsRegistry(engine)
    registry.register(ModelVersion(digest=bundle.model_version, name="kept", uri=uri))
    registry.end_shadow(actor="operator", reason="its files are gone")
    registry.promote(bundle.model_version, actor="operator", reason="test", forced=True)
