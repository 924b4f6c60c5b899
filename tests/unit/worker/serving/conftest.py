"""One decode pool for all tests of the HTTP service."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from tests.support.images.bad_files import LIMITS
from tests.support.serving.http_service import Rig, http_service
from worker.decoding.pool import DecodePool
from worker.settings import Intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def pool() -> Iterator[DecodePool]:
    """A pool of one process, with the limits of the bad files."""
    settings = Intake(
        processes=1,
        max_bytes=LIMITS.max_bytes,
        max_pixels=LIMITS.max_pixels,
        max_frames=LIMITS.max_frames,
        max_metadata_bytes=LIMITS.max_metadata_bytes,
    )
    with closing(DecodePool(settings)) as pool:
        pool.start()
        yield pool


@pytest.fixture
def serve(pool: DecodePool) -> Iterator[Callable[..., Rig]]:
    """Start services; each ends with its test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(http_service(pool, **options))
