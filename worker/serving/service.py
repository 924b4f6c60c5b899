"""What the routes are served over; the process builds and closes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Executor

    from worker.serving.checker import Checker
    from worker.serving.keys import Keys
    from worker.serving.metrics import HttpMetrics
    from worker.serving.uploads import Uploads
    from worker.settings import Http
    from worker.storage.interface import Storage
    from worker.telemetry.metrics import Metrics


class WaitingPlaces:
    """Places for requests that only wait, so that they leave some to those that work."""

    def __init__(self, places: int) -> None:
        self._left = places

    def __enter__(self) -> bool:
        """Take a place; returns whether there was one."""
        self._left -= 1
        return self._left >= 0

    def __exit__(self, *_: object) -> None:
        self._left += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Parts of one process; without `uploads` no ledger is served.

    `buckets` are those whose objects may be checked; storage and ledger have threads of their own.
    `alive` says whether the device thread makes progress. An image has at most `max_bytes`, all
    that is under way together `in_flight_bytes`.
    """

    settings: Http
    keys: Keys
    checker: Checker
    storage: Storage
    storage_threads: Executor
    ledger_threads: Executor
    buckets: Collection[str]
    metrics: Metrics
    http_metrics: HttpMetrics
    max_bytes: int
    in_flight_bytes: int
    alive: Callable[[], bool]
    waiting: WaitingPlaces
    uploads: Uploads | None = None
