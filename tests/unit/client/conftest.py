"""A service that speaks the contract of `unlatent serve` over real connections."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

IMAGE_ID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
APPEAL_ID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"

CHECKED: dict[str, Any] = {
    "score": 0.93,
    "label": "generated",
    "distance": 1.25,
    "distance_words": "beyond",
    "model_version": "small-1",
    "branches": {"backbone": 2.5},
    "decided_by": "backbone",
    "operating_point": "fpr=0.01",
    "prior": 0.5,
    "outside": None,
    "frame": 0,
    "image": {"sha256": "ab" * 32, "size": 3, "format": "JPEG", "width": 640, "height": 480},
}
SCORED: dict[str, Any] = {
    "id": IMAGE_ID,
    "state": "scored",
    "reason": None,
    "detail": None,
    "verdict": {name: value for name, value in CHECKED.items() if name != "image"}
    | {"tier": "flag", "scored_at": "2026-01-31T12:00:00Z"},
}
_ANSWERS = {
    ("POST", "/v1/check"): (200, CHECKED),
    ("POST", "/v1/images"): (202, {"id": IMAGE_ID, "state": "pending"}),
    ("GET", f"/v1/images/{IMAGE_ID}"): (200, SCORED),
    ("POST", f"/v1/images/{IMAGE_ID}/appeals"): (201, {"appeal_id": APPEAL_ID}),
    ("POST", f"/v1/images/{IMAGE_ID}/reports"): (202, None),
}


@dataclass(frozen=True)
class Request:
    """One request that the service read."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes


@dataclass
class Service:
    """The service: what it read, and the answers that it gives before its usual ones."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    #: Status, body and headers of answers; None closes the connection instead.
    planned: list[tuple[int, bytes, dict[str, str]] | None] = field(default_factory=list)
    connections: int = 0
    #: Cleared: requests are read and not answered.
    answering: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)

    def plan(self, status: int, body: object, **headers: str) -> None:
        """Plan an answer: text as a page, anything else as a problem in JSON."""
        kind = "text/html" if isinstance(body, str) else "application/problem+json"
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.planned.append((status, raw, {"Content-Type": kind, **named}))

    def plan_busy(self, retry_after: str | None, times: int = 1, *, reason: str = "busy") -> None:
        """Plan answers of a service without capacity, or with another reason for 503."""
        headers = {} if retry_after is None else {"Retry_After": retry_after}
        for _ in range(times):
            self.plan(503, {"status": 503, "reason": reason, "detail": "full"}, **headers)


@pytest.fixture
def service() -> Iterator[Service]:
    """A running service."""
    made = Service()
    made.answering.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are used again
        timeout = 5
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with made.lock:
                made.connections += 1

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            address = urlsplit(self.path)
            request = Request(
                self.command, address.path, parse_qs(address.query), self.headers, body
            )
            with made.lock:
                made.requests.append(request)
                planned = made.planned.pop(0) if made.planned else self._usual(request)
            made.answering.wait(timeout=30)
            if planned is None:
                self.close_connection = True
                return
            status, raw, headers = planned
            with suppress(ConnectionError):  # a client that has given up
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        def _usual(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
            problem = {"status": 404, "reason": "not_found", "detail": "no such image"}
            status, answer = _ANSWERS.get((request.method, request.path), (404, problem))
            raw = b"" if answer is None else json.dumps(answer).encode()
            return status, raw, {"Content-Type": "application/json"}

    with HttpServer(Handler) as server:
        made.url = server.url
        try:
            yield made
        finally:
            made.answering.set()
