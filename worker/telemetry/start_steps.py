"""Logs the steps of a start, so that a slow one says where its time went."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = structlog.get_logger(__name__)


@contextmanager
def start_step(name: str) -> Iterator[None]:
    """Log that a step of the start has ended, with its seconds; one that fails logs nothing."""
    begun = time.monotonic()
    yield
    _log.info("start_step_ended", step=name, seconds=round(time.monotonic() - begun, 3))
