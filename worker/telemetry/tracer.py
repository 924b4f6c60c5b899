"""The tracer of a process, over the API of OpenTelemetry."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The header of W3C's Trace Context.
TRACEPARENT = "traceparent"
#: What service maps are drawn from.
_KINDS = {"publish": trace.SpanKind.PRODUCER, "check": trace.SpanKind.CONSUMER}
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracer:
    """Measures stages; never raises, never waits, and never sees a key or a secret.

    `parent` is a `traceparent`; without one a stage belongs to the stage that is open in this
    thread, or begins a trace. Attributes are ids, versions, numbers and fixed words; they get the
    prefix `unlatent.`. Without a tracer of OpenTelemetry's nothing is measured, and a trace of
    whoever runs us is neither passed on nor added to.
    """

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, **attributes: str | int
    ) -> Iterator[None]:
        """Measure a stage; an exception that leaves it is noted by its class alone."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(
            name,
            context=_context(parent),
            kind=_KINDS.get(name, trace.SpanKind.INTERNAL),
            attributes=_prefixed(attributes),
            # Messages of exceptions name objects and addresses.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
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
        """Add a stage that is over, in times of `time.monotonic`; return its `traceparent`."""
        if self._tracer is None:
            return None
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
        if self._tracer is not None:
            trace.get_current_span().set_attributes(_prefixed(attributes))

    def traceparent(self) -> str | None:
        """Return the context of the stage that is open in this thread."""
        return None if self._tracer is None else _traceparent(trace.get_current_span())

    def close(self) -> None:
        """Deliver what waits, for a few seconds at most."""


#: Measures nothing.
NO_TRACER = Tracer()


def _context(parent: str | None) -> Context | None:
    return None if parent is None else _PROPAGATOR.extract({TRACEPARENT: parent}, Context())


def _traceparent(span: trace.Span) -> str | None:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(TRACEPARENT)


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)


def _prefixed(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"unlatent.{name}": value for name, value in attributes.items()}
