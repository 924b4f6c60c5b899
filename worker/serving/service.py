"""What the routes are served over; the process builds and closes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.serving.checker import Checker
    from worker.serving.keys import Keys
    from worker.serving.metrics import HttpMetrics
    from worker.serving.uploads import Uploads
    from worker.settings import Http
    from worker.storage.interface import Storage
    from worker.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Parts of one process; without `uploads` no ledger is served.

    `alive` says whether the device thread makes progress. An image has at most `max_bytes`, all
    bodies together `in_flight_bytes`.
    """

    settings: Http
    keys: Keys
    checker: Checker
    storage: Storage
    metrics: Metrics
    http_metrics: HttpMetrics
    max_bytes: int
    in_flight_bytes: int
    alive: Callable[[], bool]
    uploads: Uploads | None = None
