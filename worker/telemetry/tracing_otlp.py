"""Traces by OpenTelemetry, delivered over OTLP/HTTP by a thread of its own.

Spans wait in a bounded queue. When the collector is away or slow the oldest of them are lost, which
the log says once, and nothing else changes.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from worker.settings import Tracing

_log = structlog.get_logger(__name__)

_TIMEOUT_S = 3.0
_DELIVER_EVERY_MS = 2000
_BATCH = 512
#: 6 MB of memory, and what a worker measures of 250 images.
_QUEUE = 4 * _BATCH

#: What service maps are drawn from.
_KINDS = {"publish": SpanKind.PRODUCER, "check": SpanKind.CONSUMER}
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpTracer:
    """A `worker.telemetry.tracing.Tracer`; attributes get the prefix `unlatent.`."""

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
        self._tracer = self._provider.get_tracer("unlatent")

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, **attributes: str | int
    ) -> Iterator[None]:
        """Measure a stage."""
        with self._tracer.start_as_current_span(
            name,
            context=_context(parent),
            kind=_KINDS.get(name, SpanKind.INTERNAL),
            attributes=_prefixed(attributes),
            # Messages of exceptions name objects and addresses.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def record(
        self,
        name: str,
        *,
        begun_s: float,
        ended_s: float,
        parent: str | None = None,
        **attributes: str | int,
    ) -> str | None:
        """Add a stage that is over."""
        # A pause between the two clocks would move the stage to before those that it follows.
        offset_s = max(time.time() - time.monotonic() for _ in range(3))
        span = self._tracer.start_span(
            name,
            context=_context(parent),
            start_time=_nanoseconds(begun_s + offset_s),
            attributes=_prefixed(attributes),
        )
        span.end(_nanoseconds(ended_s + offset_s))
        return _traceparent(span)

    def note(self, **attributes: str | int) -> None:
        """Add to the stage that is open in this thread."""
        get_current_span().set_attributes(_prefixed(attributes))

    def traceparent(self) -> str | None:
        """Return the context of the stage that is open in this thread."""
        return _traceparent(get_current_span())

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


def _context(parent: str | None) -> Context | None:
    return None if parent is None else _PROPAGATOR.extract({"traceparent": parent}, Context())


def _traceparent(span: Span) -> str | None:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
    return carrier.get("traceparent")


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)


def _prefixed(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"unlatent.{name}": value for name, value in attributes.items()}
