"""Traces from an upload's event to its verdict, for deployments that name a collector.

    ingest              bridge: an entry, from being read to being a row
      register          bridge: the ledger's transaction
      publish           the process that sends the message
        queue           from its sending to the start of the check
        check           worker: one try
          fetch, decode, batch, forward, persist

Entries and messages carry the context between processes as W3C's `traceparent`. Without a collector
nothing is measured or sent along; `worker.telemetry.tracing_otlp` delivers to one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from detection.errors import SettingsError
from worker.telemetry.tracer import NO_TRACER, TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from worker.settings import Tracing
    from worker.telemetry.tracer import Tracer

_SENT_AT = "sent_at"
#: What a message says to have waited beyond this is nonsense.
_LONGEST_WAIT_S = 30 * 86_400.0


def build_tracer(settings: Tracing, *, service: str) -> Tracer:
    """Build the tracer of one process, whose spans carry the name of the service.

    Raises `SettingsError` when the settings name a collector and OpenTelemetry is not installed.
    """
    if not settings.endpoint:
        return NO_TRACER
    try:
        from worker.telemetry.tracing_otlp import OtlpTracer
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"UNLATENT_TRACING__ENDPOINT is set, but {error.name} is missing: "
            "pip install 'unlatent[tracing]'"
        ) from error
    return OtlpTracer(settings, service=service)


def message_headers(tracer: Tracer) -> dict[str, str | float]:
    """Return what a message carries of the stage that sends it."""
    traceparent = tracer.traceparent()
    return {} if traceparent is None else {TRACEPARENT: traceparent, _SENT_AT: time.time()}


def check_span(
    tracer: Tracer, headers: Mapping[str, object], *, image_id: str, retries: int
) -> AbstractContextManager[None]:
    """Measure a check as its message's headers say, and before that the message's wait.

    Headers are read like everything from the broker: what is missing or nonsense begins a trace. A
    message that Celery sends again carries the headers of the first, so its wait is not measured.
    """
    sent, sent_at = headers.get(TRACEPARENT), headers.get(_SENT_AT)
    parent = sent if isinstance(sent, str) else None
    if parent is not None and isinstance(sent_at, float) and not retries:
        waited_s = time.time() - sent_at
        if abs(waited_s) < _LONGEST_WAIT_S:
            now = time.monotonic()
            # Clocks of two machines may disagree.
            tracer.record("queue", begun_s=now - max(0.0, waited_s), ended_s=now, parent=parent)
    return tracer.span("check", parent=parent, image_id=image_id)
