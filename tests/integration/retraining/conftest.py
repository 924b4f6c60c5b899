"""What the tests of retraining share: their bucket, and the right to write decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from worker.settings import Settings


@pytest.fixture
def storage(settings: Settings) -> Iterator[S3Storage]:
    """This test's bucket."""
    storage = S3Storage(settings.s3)
    yield storage
    storage.close()


@pytest.fixture
def owner(settings: Settings) -> Iterator[Engine]:
    """The schema's owner, who may write decisions without a moderator's login."""
    assert settings.postgres.owner_url is not None
    engine = create_engine(settings.postgres.owner_url.get_secret_value(), poolclass=NullPool)
    yield engine
    engine.dispose()
