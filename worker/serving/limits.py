"""What every request passes: so many at once, so many bytes, and its measurement."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from detection.intake.errors import TooManyBytes
from worker.serving.keys import is_local_host
from worker.serving.problems import Busy, RequestRefused, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from worker.serving.metrics import HttpMetrics

#: What multipart puts around a file of the largest size.
_AROUND_BYTES = 64 * 1024
#: Answered however much is under way: they say how it stands.
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})


class Limits:
    """Refuses what is too much before it is read.

    With `local_only` the `Host` of a request must be a loopback name: without keys, pages of other
    sites must not be able to ask through a browser on this machine.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests: int,
        max_bytes: int,
        local_only: bool,
        metrics: HttpMetrics,
    ) -> None:
        self._app = app
        self._left = requests
        self._max_bytes = max_bytes
        self._local_only = local_only
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        status = 500

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                await problem_of(refusal)(scope, receive, send_noting)
                return
            self._left -= 1
            try:
                await self._app(scope, self._bounded(receive), send_noting)
            finally:
                self._left += 1
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun)

    def _refusal(self, headers: Headers) -> Exception | None:
        if self._local_only and not is_local_host(headers.get("host", "")):
            return RequestRefused(
                "Without keys only requests to a loopback name are answered.",
                status=403,
                reason="host_refused",
            )
        size = headers.get("content-length", "")
        if size.isdecimal() and int(size) > self._max_bytes + _AROUND_BYTES:
            return self._too_large()
        return None if self._left > 0 else Busy()

    def _bounded(self, receive: Receive) -> Receive:
        left = self._max_bytes + _AROUND_BYTES

        async def receive_bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        return receive_bounded

    def _too_large(self) -> TooManyBytes:
        return TooManyBytes(f"The file has more than {self._max_bytes} bytes, the limit.")
