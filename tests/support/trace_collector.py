"""A collector of traces for tests: it answers OTLP over HTTP and keeps what it was sent."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http_server import HttpServer

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(HttpServer):
    """Takes spans while `open` is set; until then a request gets no answer.

    With another `status` than 200 it refuses them.
    """

    def __init__(self) -> None:
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.paths: set[str] = set()
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.asked.set()
                collector.paths.add(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not collector.open.wait(120):
                    return
                if collector.status == 200:
                    collector.bodies.append(body)
                self.send_response(collector.status)
                self.end_headers()

        super().__init__(Handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.open.set()
        super().__exit__(kind, error, traceback)

    def spans(self) -> dict[str, Span]:
        """Return what arrived by name; of two spans of one name the later one."""
        return {span.name: span for _, span in self.delivered()}

    def delivered(self) -> list[tuple[str, Span]]:
        """Return every span with the name of its service, in the order in which they began."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [(named["service.name"], span) for span in scope.spans]
        return sorted(found, key=lambda one: one[1].start_time_unix_nano)


def attributes(span: Span) -> dict[str, str | int]:
    """Return a span's attributes of ours."""
    return {
        one.key: one.value.string_value or one.value.int_value
        for one in span.attributes
        if one.key.startswith("unlatent.")
    }
