"""The HTTP service over the real ledger, queue and storage, and moderators beside it."""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.integration.moderation.conftest import desk, scored, superuser
from tests.support.serving.http_service import Rig, http_service
from tests.unit.worker.serving.conftest import pool
from worker.ledger.postgres import PostgresLedger
from worker.queue.app import build_app
from worker.queue.publisher import CeleryPublisher
from worker.serving.uploads import Uploads
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.decoding.pool import DecodePool
    from worker.settings import Settings

__all__ = ["desk", "pool", "scored", "superuser"]


@pytest.fixture
def rig(settings: Settings, engine: Engine, pool: DecodePool) -> Iterator[Rig]:
    """The service with its ledger; keys `web-key` and `app-key` are of sources web and app."""
    ledger = PostgresLedger(engine)
    keys = {name: hashlib.sha256(f"{name}-key".encode()).hexdigest() for name in ("web", "app")}
    with closing(S3Storage(settings.s3)) as storage, closing(build_app(settings)) as app:
        uploads = Uploads(
            engine=engine,
            ledger=ledger,
            publisher=CeleryPublisher(app, ledger),
            storage=storage,
            buckets=settings.s3.buckets,
        )
        with http_service(
            pool,
            storage=storage,
            uploads=uploads,
            buckets=settings.s3.buckets,
            keys=keys,
            host="10.0.0.7",
            timeout_s=20,
        ) as rig:
            rig.client.headers["Authorization"] = "Bearer web-key"
            yield rig
