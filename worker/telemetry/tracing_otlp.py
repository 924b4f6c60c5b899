"""Traces by OpenTelemetry, delivered over OTLP/HTTP by a thread of its own.

Spans wait in a bounded queue. When the collector is away or slow the oldest of them are lost, which
the log says once, and nothing else changes.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from worker.telemetry.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from worker.settings import Tracing

_log = structlog.get_logger(__name__)

_TIMEOUT_S = 3.0
_DELIVER_EVERY_MS = 2000
_BATCH = 512
#: 6 MB of memory, and what a worker measures of 250 images.
_QUEUE = 4 * _BATCH


class OtlpTracer(Tracer):
    """A tracer that delivers to the collector of the settings."""

    def __init__(self, settings: Tracing, *, service: str) -> None:
        assert settings.endpoint is not None  # noqa: S101  # else `build_tracer` builds another
        # It repeats itself with every batch; `_Delivery` says what matters.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._delivery = _Delivery(
            OTLPSpanExporter(
                endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=_TIMEOUT_S
            )
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_share)),
            resource=Resource.create(
                {
                    "service.namespace": "unlatent",
                    "service.name": service,
                    "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
                }
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._delivery,
                max_queue_size=_QUEUE,
                max_export_batch_size=_BATCH,
                schedule_delay_millis=_DELIVER_EVERY_MS,
            )
        )
        super().__init__(self._provider.get_tracer("unlatent"))

    def close(self) -> None:
        """Deliver what waits; a collector that is away is tried for one batch."""
        self._delivery.closing = True
        self._provider.shutdown()


class _Delivery(SpanExporter):
    """Hands batches to the exporter and says once that they do not arrive, and once that they do.

    When `closing`, it gives up on a collector that did not take the last batch.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self.closing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Deliver one batch."""
        if self.closing and self._away:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            _log.warning("traces_lost", setting="UNLATENT_TRACING__ENDPOINT", spans=len(spans))
        elif self._away and not away:
            _log.info("trace_export_recovered")
        self._away = away
        return result

    def shutdown(self) -> None:
        """Close the connections."""
        self._exporter.shutdown()
