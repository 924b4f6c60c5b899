"""Sends requests to the service: pooled connections, bounded retries, errors as exceptions."""

from __future__ import annotations

import json
import math
import random
import re
from http import HTTPStatus
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError

from unlatent_client.errors import Busy, Problem, UnexpectedAnswer, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECT_TIMEOUT_S = 5.0
_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 8.0
#: A service that says "at once" is not asked in a tight loop.
_SHORTEST_DELAY_S = 0.1
#: A gateway's word for a connection that broke.
_BROKEN = frozenset({HTTPStatus.BAD_GATEWAY})
_BUSY = HTTPStatus.SERVICE_UNAVAILABLE
#: Errors before which no byte of the request was sent.
_NOT_SENT = (NewConnectionError, ConnectTimeoutError)


class Transport:
    """Connections to one service. Threads may share it; a process that forks builds its own."""

    def __init__(
        self, base_url: str, key: str | None, *, timeout_s: float, retry_s: float, connections: int
    ) -> None:
        if not re.match(r"https?://[^/]", base_url):
            raise ValueError(f"{base_url!r} is not the http:// or https:// address of a service")
        # An error of the header itself would show the key.
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ValueError("the key is empty or holds more than visible ASCII")
        self._base = base_url.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "unlatent-client"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._pool = urllib3.PoolManager(maxsize=connections)

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float | None = None,
        retry_s: float | None = None,
        repeatable: bool = True,
    ) -> Any:
        """Send a request until it is answered; return the JSON of the answer, None without a body.

        A request that was not sent, or was turned away because the service was full, is tried
        again. So is one whose connection broke or that got another 503, where it is `repeatable`:
        it may have been done. The last try begins within `retry_s` of the
        first one, at most the client's own limit. The service may hold a request for `wait_s`.
        Raises `Problem`, `Busy`, `Unreachable` and `UnexpectedAnswer`.
        """
        patience_s = self._retry_s if retry_s is None else min(retry_s, self._retry_s)
        began = monotonic()
        tries = 0
        while True:
            try:
                return self._once(method, path, query, body, headers, wait_s)
            except Busy as busy:
                if busy.reason != "busy" and not repeatable:
                    raise
                delay_s = _delay(tries, busy.retry_after)
                error: Busy | _Broken = busy
            except _Broken as broken:
                if broken.sent and not repeatable:
                    raise Unreachable(str(broken)) from broken
                delay_s = _delay(tries, None)
                error = broken
            if monotonic() + delay_s > began + patience_s:
                if isinstance(error, Busy):
                    raise error
                raise Unreachable(str(error)) from error
            sleep(delay_s)
            tries += 1

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()

    def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        wait_s: float | None,
    ) -> Any:
        timeout = urllib3.Timeout(
            connect=_CONNECT_TIMEOUT_S, read=self._timeout_s + (wait_s or 0.0)
        )
        try:
            response = self._pool.request(
                method,
                self._base + path + (f"?{urlencode(query)}" if query else ""),
                body=body,
                headers={**self._headers, **(headers or {})},
                timeout=timeout,
                retries=False,
                redirect=False,  # the key is for nobody else
            )
        except _NOT_SENT as error:
            raise _Broken(f"no connection to {self._base}: {error}", sent=False) from error
        except ProtocolError as error:
            raise _Broken(f"the connection to {self._base} broke: {error}", sent=True) from error
        except HTTPError as error:
            raise Unreachable(f"no answer from {self._base}: {error}") from error
        return _answer(response)


class _Broken(Exception):
    """A try that broke; `sent` is whether the service may have seen the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def whole_seconds(wait_s: float) -> str:
    """Return a time in whole seconds, as `Prefer: wait` (RFC 7240, section 4.3) has it."""
    if not (math.isfinite(wait_s) and wait_s >= 0):
        raise ValueError(f"wait_s is {wait_s}, not a time in seconds")
    return str(math.ceil(wait_s))


def _delay(tries: int, retry_after_s: float | None) -> float:
    """Return the seconds until the next try: as asked at least, longer each time, and by chance."""
    longest_s = min(_FIRST_DELAY_S * 2**tries, _LONGEST_DELAY_S)
    own_s = random.uniform(_SHORTEST_DELAY_S, longest_s)  # noqa: S311 - spreads callers
    return max(own_s, retry_after_s or 0.0)


def _answer(response: urllib3.BaseHTTPResponse) -> Any:
    """Return the JSON of a good answer; raise the meaning of any other."""
    if 200 <= response.status < 300:
        if not response.data:
            return None
        try:
            return json.loads(response.data)
        except ValueError as error:
            raise UnexpectedAnswer(f"{response.status} without JSON: {_start(response)}") from error
    if response.status in _BROKEN:
        raise _Broken(f"{response.status} from a gateway: {_start(response)}", sent=True)
    reason, detail = _problem(response)
    if response.status == _BUSY:
        raise Busy(response.status, reason, detail, _retry_after(response))
    raise Problem(response.status, reason, detail)


def _problem(response: urllib3.BaseHTTPResponse) -> tuple[str | None, str]:
    """Read reason and detail of an error; a proxy's has neither."""
    try:
        problem = json.loads(response.data)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return None, _start(response)
    return problem.get("reason"), problem.get("detail") or problem.get("title") or ""


def _start(response: urllib3.BaseHTTPResponse) -> str:
    return response.data[:200].decode(errors="replace")


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    written = response.headers.get("Retry-After", "")
    # The service writes seconds; a proxy's date says nothing that is worth a clock's error.
    return float(written) if re.fullmatch(r"[0-9]{1,9}", written) else None
