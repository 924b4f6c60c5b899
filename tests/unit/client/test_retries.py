"""When the client asks again, after which time, and when it gives up."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.unit.client.conftest import IMAGE_ID
from unlatent_client import Busy, Client, Unreachable, transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.conftest import Service


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries; they pass on a clock of this test's own."""
    waited: list[float] = []
    monkeypatch.setattr(transport, "sleep", waited.append)
    monkeypatch.setattr(transport, "monotonic", lambda: sum(waited))
    return waited


def test_a_busy_service_is_asked_again_after_its_time(service: Service, waits: list[float]) -> None:
    """The caller gets the answer; the wait is the one that the service asked for."""
    service.plan_busy("2")
    with Client(service.url) as client:
        assert client.check(b"abc").label == "generated"
    assert waits == [2.0]
    assert len(service.requests) == 2


def test_a_service_that_stays_busy_is_given_up(service: Service, waits: list[float]) -> None:
    """No try begins after the client's limit, and the error carries the time that was asked for."""
    service.plan_busy("7", times=9)
    with Client(service.url, retry_s=20) as client, pytest.raises(Busy) as caught:
        client.check(b"abc")
    assert waits == [7.0, 7.0]
    busy = caught.value
    assert (busy.status, busy.reason, busy.detail, busy.retry_after) == (503, "busy", "full", 7.0)


def test_a_wait_beyond_the_limit_is_not_begun(service: Service, waits: list[float]) -> None:
    """A service that asks for an hour is not asked sooner."""
    service.plan_busy("3600")
    with Client(service.url) as client, pytest.raises(Busy):
        client.check(b"abc")
    assert waits == []
    assert len(service.requests) == 1


def test_the_wait_of_a_check_bounds_its_tries(service: Service, waits: list[float]) -> None:
    """A caller who waits three seconds for a verdict is not kept for thirty."""
    service.plan_busy("2", times=9)
    with Client(service.url) as client, pytest.raises(Busy):
        client.check(b"abc", wait_s=3)
    assert waits == [2.0]


def test_no_retries_are_none(service: Service, waits: list[float]) -> None:
    """With `retry_s=0` the first answer counts."""
    service.plan_busy("0")
    with Client(service.url, retry_s=0) as client, pytest.raises(Busy):
        client.check(b"abc")
    assert waits == []


@pytest.mark.parametrize("retry_after", [None, "Fri, 31 Jan 2031 23:59:59 GMT", "soon", "-1"])
def test_without_a_time_waits_grow(
    service: Service, waits: list[float], retry_after: str | None
) -> None:
    """A missing time, a date and nonsense leave the client its own waits, which are bounded."""
    service.plan_busy(retry_after, times=200)
    with Client(service.url, retry_s=60) as client, pytest.raises(Busy) as caught:
        client.check(b"abc")
    assert caught.value.retry_after is None
    limits = [min(0.25 * 2**tries, 8.0) for tries in range(len(waits))]
    assert all(0.1 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert max(waits) > 1


def test_a_service_that_says_at_once_is_not_hammered(service: Service, waits: list[float]) -> None:
    """`Retry-After: 0` leaves the client its own waits."""
    service.plan_busy("0", times=3)
    with Client(service.url) as client:
        client.check(b"abc")
    assert len(waits) == 3
    assert min(waits) >= 0.1


def test_many_callers_do_not_come_back_together(service: Service, waits: list[float]) -> None:
    """A service that always asks for a second is asked after longer waits, never after shorter."""
    service.plan_busy("1", times=200)
    with Client(service.url, retry_s=120) as client, pytest.raises(Busy):
        client.check(b"abc")
    assert min(waits) == 1
    assert max(waits) > 2
    assert len(set(waits)) > 5


def test_a_submission_is_repeated_under_one_key(service: Service, waits: list[float]) -> None:
    """A connection that breaks, a gateway and a busy service leave one upload, not four."""
    service.planned.append(None)
    service.plan(502, "<h1>bad gateway</h1>")
    service.plan_busy("1")
    with Client(service.url) as client:
        assert str(client.submit(bucket="uploads", key="a.jpg")) == IMAGE_ID
    assert len(service.requests) == 4
    assert len(waits) == 3
    assert len({request.headers["Idempotency-Key"] for request in service.requests}) == 1
    assert len({request.body for request in service.requests}) == 1


@pytest.mark.parametrize(
    "ask", [lambda client: client.appeal(IMAGE_ID, "mine"), lambda client: client.report(IMAGE_ID)]
)
def test_what_may_have_been_done_is_not_repeated(
    service: Service, waits: list[float], ask: Callable[[Client], None]
) -> None:
    """Appeals and reports are sent again when nothing was done, and not after a broken answer."""
    service.plan_busy("1")
    service.planned.append(None)
    with Client(service.url) as client, pytest.raises(Unreachable):
        ask(client)
    assert waits == [1.0]
    assert len(service.requests) == 2
    service.plan(502, "<h1>bad gateway</h1>")
    with Client(service.url) as client, pytest.raises(Unreachable, match="502"):
        ask(client)
    service.plan_busy("1", reason="unavailable")
    with Client(service.url) as client, pytest.raises(Busy):
        ask(client)
    assert waits == [1.0]


def test_a_service_that_is_away_is_tried_for_a_while(waits: list[float]) -> None:
    """Refused connections are tried again, also for appeals, and then named."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with Client(address, retry_s=5) as client, pytest.raises(Unreachable, match=address):
            client.appeal(IMAGE_ID, "mine")
    assert len(waits) > 1
    assert sum(waits) <= 5
