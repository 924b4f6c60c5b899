"""What every request passes: limits on how many, how large and how slow, and its measurement."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from detection.intake.errors import TooManyBytes
from worker.serving.keys import is_local
from worker.serving.problems import Busy, RequestRefused, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from worker.serving.metrics import HttpMetrics

#: What multipart puts around a file of the largest size.
_AROUND_BYTES = 64 * 1024
HOOKS = "/hooks/"
#: Where a request's scope has its `Body`.
BODY = "unlatent.body"
#: Answered however much is under way: they say how it stands.
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})


class Limits:
    """Refuses what is too much before it is read.

    A body has at most `max_bytes` and comes within `timeout_s`; all that are under way together
    have at most `in_flight_bytes`. With `local_only` only programs on this machine are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests: int,
        max_bytes: int,
        in_flight_bytes: int,
        timeout_s: float,
        local_only: bool,
        metrics: HttpMetrics,
    ) -> None:
        self._app = app
        self._left = requests
        self._max_bytes = max_bytes
        self._left_bytes = in_flight_bytes
        self._timeout_s = timeout_s
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
                await self._refuse(refusal, scope, receive, send_noting)
                return
            self._left -= 1
            body = Body(receive, self, until=begun + self._timeout_s)
            scope[BODY] = body
            try:
                await self._app(scope, body.receive, send_noting)
            finally:
                self._left += 1
                self._left_bytes += body.size
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun)

    async def _refuse(self, refusal: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_nothing() -> Message:
            raise refusal

        # What a hook does without a check is the settings' to say.
        if scope["path"].startswith(HOOKS) and not isinstance(refusal, RequestRefused):
            await self._app(scope, receive_nothing, send)
        else:
            await problem_of(refusal)(scope, receive, send)

    def _refusal(self, headers: Headers) -> Exception | None:
        if self._local_only and not is_local(headers):
            return RequestRefused(
                "Without keys only programs on this machine are answered: no page of another site,"
                " and nothing that a proxy passes on.",
                status=403,
                reason="not_local",
            )
        size = headers.get("content-length", "")
        if size.isdecimal() and int(size) > self._max_bytes + _AROUND_BYTES:
            return self._too_large()
        return None if self._left > 0 else Busy()

    def take(self, more_bytes: int, *, size: int) -> None:
        """Count bytes of a body of `size` so far; raises `TooManyBytes` or `Busy`."""
        self._left_bytes -= more_bytes
        if size > self._max_bytes + _AROUND_BYTES:
            raise self._too_large()
        if self._left_bytes < 0:
            raise Busy

    def _too_large(self) -> TooManyBytes:
        return TooManyBytes(f"The file has more than {self._max_bytes} bytes, the limit.")


class Body:
    """The bytes of one request: its body as it comes in, and what was fetched for it."""

    def __init__(self, receive: Receive, limits: Limits, *, until: float) -> None:
        self._receive = receive
        self._limits = limits
        self._until = until
        self._whole = False
        #: What came so far, in bytes.
        self.size = 0

    async def receive(self) -> Message:
        """Return the next message of the connection."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestRefused(
                "The body did not come in time.", status=408, reason="request_timeout"
            ) from error
        self._whole = not message.get("more_body", False)
        self.add(len(message.get("body", b"")))
        return message

    def add(self, more_bytes: int) -> None:
        """Count more bytes as this request's; raises `TooManyBytes` or `Busy`."""
        self.size += more_bytes
        self._limits.take(more_bytes, size=self.size)
