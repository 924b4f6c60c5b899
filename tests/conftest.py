"""Fixtures over real local services, shared by the integration and the failure suites.

One stack serves the whole run. Each test that asks for `settings` gets its own database (a clone
of one migrated template), its own key prefix in Redis and its own bucket. A test may kill, stop
and start servers of `stack`: what it leaves dead is started again after it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from worker.settings import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    import redis
    from sqlalchemy import Engine

    from tests.support.pgbouncer import PgBouncer
    from worker.localstack import LocalStack


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose a PostgreSQL and put a pooler before it."""
    parser.addoption(
        "--pooler",
        choices=("session", "transaction"),
        help="connect to Postgres through PgBouncer in this mode",
    )
    parser.addoption(
        "--postgres",
        choices=("16", "17", "18"),
        default="18",
        help="run the local services with this major version of PostgreSQL",
    )


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    # What a command configures would write to a stream that its test has closed.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def session_stack(pytestconfig: pytest.Config) -> Iterator[LocalStack]:
    """The run's local services, with the database `unlatent` migrated and left alone."""
    from tests.support.processes.postgres_versions import VERSIONS
    from worker.database.engine import migrate
    from worker.localstack import LocalStack

    with pytest.MonkeyPatch.context() as patch:
        server = VERSIONS[pytestconfig.getoption("--postgres")]
        patch.setattr("worker.localstack.stack.PostgresServer", server)
        with LocalStack.temporary() as stack:
            migrate(stack.addresses.owner_url())
            yield stack


@pytest.fixture
def stack(session_stack: LocalStack) -> Iterator[LocalStack]:
    """The run's local services, all running before and after each test."""
    yield session_stack
    for server in session_stack.servers:
        server.start()


@pytest.fixture
def database(stack: LocalStack) -> Iterator[str]:
    """Name of a migrated, empty database of this test's own."""
    name = f"test_{uuid4().hex}"
    stack.database.clone("unlatent", name)
    yield name
    if not stack.postgres.running:
        stack.postgres.start()
    stack.database.drop(name)


@pytest.fixture(scope="session")
def pooler(session_stack: LocalStack, pytestconfig: pytest.Config) -> Iterator[PgBouncer | None]:
    """The pooler that `--pooler` asks for."""
    from tests.support.pgbouncer import PgBouncer

    mode = pytestconfig.getoption("--pooler")
    pooler = None if mode is None else PgBouncer(session_stack, mode)
    if pooler is not None:
        pooler.start()
    yield pooler
    if pooler is not None:
        pooler.kill()


@pytest.fixture
def route(pooler: PgBouncer | None) -> Callable[[str], str]:
    """Return the address at which tests reach a database, given its own."""
    return (lambda url: url) if pooler is None else pooler.before


@pytest.fixture
def bucket(stack: LocalStack) -> str:
    """Name of an empty bucket of this test's own."""
    name = f"test-{uuid4().hex}"
    stack.s3.make_buckets([name])
    return name


@pytest.fixture
def settings(
    stack: LocalStack, database: str, bucket: str, tmp_path: Path, route: Callable[[str], str]
) -> Settings:
    """Settings that point at this test's own database, key prefix and bucket."""
    return Settings.model_validate(
        {
            "postgres": {
                "url": route(stack.addresses.database_url(database)),
                "owner_url": route(stack.addresses.owner_url(database)),
            },
            "redis": {"url": stack.redis.url, "key_prefix": f"test-{uuid4().hex}:"},
            "s3": {
                "endpoint_url": stack.s3.endpoint_url,
                "access_key_id": stack.s3.access_key_id,
                "secret_access_key": stack.s3.secret_access_key,
                "buckets": (bucket,),
            },
            "sqs": {
                "access_key_id": stack.s3.access_key_id,
                "secret_access_key": stack.s3.secret_access_key,
            },
            "scoring": {"device": "cpu"},
            "observability": {"run_dir": tmp_path / "run"},
        }
    )


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """The service role's connections to this test's database."""
    from worker.database.engine import build_engine

    engine = build_engine(settings.postgres)
    yield engine
    engine.dispose()


@pytest.fixture
def redis_client(settings: Settings) -> Iterator[redis.Redis]:
    """A client of this run's Redis; keys are not prefixed for it."""
    from redis import Redis

    with Redis.from_url(settings.redis.url.get_secret_value()) as client:
        yield client


@pytest.fixture
def s3_client(stack: LocalStack) -> Iterator[Any]:
    """A boto3 client of this run's object storage."""
    client = stack.s3.client()
    yield client
    client.close()
