"""The HTTP service described: `python -m tests.support.docs.openapi` writes docs/openapi.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from worker.serving.app import build_app
from worker.serving.keys import Keys
from worker.serving.metrics import HttpMetrics
from worker.serving.service import Service, WaitingPlaces
from worker.settings import Http

PAGE = Path(__file__).parents[3] / "docs" / "openapi.json"


def render() -> str:
    """Return the description of every route, the ledger's included."""
    http = Http()
    nothing = cast("Any", None)  # routes are described without being called
    service = Service(
        settings=http,
        keys=Keys(http),
        checker=nothing,
        storage=nothing,
        storage_threads=nothing,
        ledger_threads=nothing,
        buckets=(),
        metrics=nothing,
        http_metrics=HttpMetrics(CollectorRegistry()),
        max_bytes=1,
        in_flight_bytes=1,
        alive=lambda: True,
        waiting=WaitingPlaces(1),
        uploads=cast("Any", object()),
    )
    return json.dumps(build_app(service).openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
