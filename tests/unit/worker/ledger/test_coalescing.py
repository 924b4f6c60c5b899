"""Questions of many threads in one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable
from worker.ledger.coalescing import Coalescer

if TYPE_CHECKING:
    from collections.abc import Sequence

THREADS = 6


def test_threads_that_ask_at_once_share_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before the next question is due goes with it; everybody gets its own answer."""
    asked: list[list[int]] = []

    def ask_all(items: Sequence[int]) -> list[int]:
        asked.append(list(items))
        return [10 * item for item in items]

    coalescer: Coalescer[int, int] = Coalescer(ask_all, every_s=60.0)
    waits: list[float] = []

    def wait_for_all(seconds: float) -> None:
        waits.append(seconds)
        if seconds:
            group = coalescer._open
            eventually(lambda: group is not None and len(group.items) == THREADS, what="all")

    monkeypatch.setattr("worker.ledger.coalescing.time.sleep", wait_for_all)
    coalescer.ask(0)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(coalescer.ask, range(1, THREADS + 1)))
    assert answers == [10 * item for item in range(1, THREADS + 1)]
    assert asked[0] == [0]
    assert sorted(asked[1]) == [1, 2, 3, 4, 5, 6]
    assert len(asked) == 2
    assert waits[0] == 0
    assert 0 < waits[1] <= 60


def test_a_slow_question_holds_up_no_later_one() -> None:
    """While one question waits for its answer, others are asked and answered."""
    go_on = Event()

    def ask_all(items: Sequence[object]) -> list[str]:
        if items == ["slow"]:
            assert go_on.wait(10)
        return ["answer"]

    coalescer: Coalescer[str, str] = Coalescer(ask_all, every_s=0.0)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(coalescer.ask, "slow")
        eventually(slow.running, what="the slow question")
        assert coalescer.ask("quick") == "answer"
        assert not slow.done()
        go_on.set()
        assert slow.result(10) == "answer"


def test_an_error_reaches_everybody_of_its_question_and_nobody_else() -> None:
    """A question that fails is answered with its error; the next one is asked as ever."""

    def ask_all(items: Sequence[object]) -> list[int]:
        if items == [1]:
            raise ZeroDivisionError
        return [2]

    coalescer: Coalescer[int, int] = Coalescer(ask_all, every_s=0.0)
    with pytest.raises(ZeroDivisionError):
        coalescer.ask(1)
    assert coalescer.ask(2) == 2


def test_what_fails_for_several_is_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One item at fault fails by itself; of a ledger that is away everybody hears at once."""
    asked: list[list[int]] = []

    def ask_all(items: Sequence[int]) -> list[int]:
        asked.append(list(items))
        if items == [0]:
            return [0]
        if 4 in items:
            raise LedgerUnavailable
        if 1 in items:
            raise ZeroDivisionError
        return list(items)

    coalescer: Coalescer[int, int] = Coalescer(ask_all, every_s=60.0)

    def wait_for(count: int) -> None:
        def wait(seconds: float) -> None:
            if seconds:
                group = coalescer._open
                eventually(lambda: group is not None and len(group.items) == count, what="all")

        monkeypatch.setattr("worker.ledger.coalescing.time.sleep", wait)

    wait_for(3)
    coalescer.ask(0)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(coalescer.ask, item) for item in (1, 2, 3)]
        assert isinstance(answers[0].exception(10), ZeroDivisionError)
        assert [answer.result(10) for answer in answers[1:]] == [2, 3]
    assert sorted(map(len, asked)) == [1, 1, 1, 1, 3]
    wait_for(2)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(coalescer.ask, item) for item in (4, 5)]
        assert all(isinstance(answer.exception(10), LedgerUnavailable) for answer in answers)
    assert len(asked[-1]) == 2


def test_what_ends_the_thread_that_asks_ends_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is told to exit while it asks for all exits; the others ask for themselves."""

    def ask_all(items: Sequence[int]) -> list[int]:
        if len(items) > 1:
            raise SystemExit
        return list(items)

    coalescer: Coalescer[int, int] = Coalescer(ask_all, every_s=60.0)

    def wait_for_all(seconds: float) -> None:
        if seconds:
            group = coalescer._open
            eventually(lambda: group is not None and len(group.items) == 3, what="all")

    monkeypatch.setattr("worker.ledger.coalescing.time.sleep", wait_for_all)
    coalescer.ask(0)
    with ThreadPoolExecutor(3) as pool:
        asked = {item: pool.submit(coalescer.ask, item) for item in (1, 2, 3)}
        ended = [item for item, one in asked.items() if isinstance(one.exception(10), SystemExit)]
        assert len(ended) == 1
        assert all(one.result(10) == item for item, one in asked.items() if item not in ended)
