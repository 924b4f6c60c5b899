"""What tests of migrations share: the owner's and the superuser's way into their database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.localstack import LocalStack
    from worker.settings import Settings


@pytest.fixture
def owner_url(settings: Settings) -> str:
    """URL of this test's own database, as its owner."""
    assert settings.postgres.owner_url is not None
    return settings.postgres.owner_url.get_secret_value()


@pytest.fixture
def superuser(stack: LocalStack, database: str) -> Iterator[psycopg.Connection]:
    """A connection of the superuser to this test's database."""
    with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as connection:
        yield connection
