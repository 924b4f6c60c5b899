"""The micro-batcher: many threads submit one item each, one thread runs them together.

1. `submit` hands over an item and returns a future; it never blocks.
2. `run_next`, called in a loop by the one running thread, blocks for a first item, collects more
   until `max_batch` or until `max_wait_s` after the first was submitted, runs them, and settles
   their futures. While the runner was busy the first may have waited long enough already; then
   what is there runs at once.
3. An item submitted as `alone` runs by itself; met while collecting, it stays first in line.
4. `submit_spare` hands over an item that may be dropped: it runs only when nothing else waits, and
   fails as soon as something does.
5. `close` refuses new items and fails the waiting ones with a `TransientError`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from detection.errors import TransientError, UnlatentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherClosed(TransientError):
    """The batcher is shutting down."""


class BatcherFull(TransientError):
    """More items wait for a batch than the batcher may hold."""


class Displaced(TransientError):
    """Other images wait, and this item was worth running only if none did."""


class CountMismatch(UnlatentError):
    """A batch gave back another number of outcomes than it was given items."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket(Generic[Item, Result]):
    item: Item
    alone: bool
    submitted_at: float
    future: Future[Result] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """Holds at most `capacity` waiting items and hands them out in batches.

    A future that was cancelled before its batch began is dropped, and takes no place.
    """

    def __init__(self, *, max_batch: int, max_wait_s: float, capacity: int) -> None:
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._capacity = capacity
        self._waiting: deque[_Ticket[Item, Result]] = deque()
        self._spare: list[_Ticket[Item, Result]] = []
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Return how many items wait."""
        with self._changed:
            return len(self._waiting)

    def submit(self, item: Item, *, alone: bool = False) -> Future[Result]:
        """Queue one item; raises `BatcherClosed` or `BatcherFull`, both transient."""
        ticket: _Ticket[Item, Result] = _Ticket(item, alone, time.monotonic())
        with self._changed:
            if self._closed:
                raise BatcherClosed
            if len(self._waiting) >= self._capacity:
                self._forget_cancelled()
            if len(self._waiting) >= self._capacity:
                raise BatcherFull
            self._waiting.append(ticket)
            displaced, self._spare = self._spare, []
            self._changed.notify_all()
        _fail(displaced, Displaced)
        return ticket.future

    def submit_spare(self, item: Item) -> Future[Result]:
        """Queue an item that runs only if nothing else waits; else it ends as `Displaced`."""
        ticket: _Ticket[Item, Result] = _Ticket(item, alone=False, submitted_at=time.monotonic())
        with self._changed:
            if self._closed:
                raise BatcherClosed
            if self._waiting or len(self._spare) >= self._max_batch:
                raise Displaced
            self._spare.append(ticket)
            self._changed.notify_all()
        return ticket.future

    def run_next(
        self, run: Callable[[Sequence[Item]], Sequence[Result | Exception]], *, idle_s: float
    ) -> int:
        """Run one batch and return its size; 0 when nothing came within `idle_s`.

        `run` gives one outcome an item, in order; an exception among them fails that item's future.
        An exception raised by `run`, or another number of outcomes, fails them all; what is not an
        `Exception` (the process is ending) fails them and propagates.
        """
        tickets = [
            ticket
            for ticket in self._collect(idle_s)
            if ticket.future.set_running_or_notify_cancel()
        ]
        if not tickets:
            return 0
        try:
            outcomes = _checked(run([ticket.item for ticket in tickets]), len(tickets))
        except BaseException as error:
            for ticket in tickets:
                ticket.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return len(tickets)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome)
        return len(tickets)

    def close(self) -> None:
        """Refuse new items and fail the waiting ones; a batch that runs is not touched."""
        with self._changed:
            self._closed = True
            waiting = [*self._waiting, *self._spare]
            self._waiting.clear()
            self._spare = []
            self._changed.notify_all()
        _fail(waiting, BatcherClosed)

    def _collect(self, idle_s: float) -> list[_Ticket[Item, Result]]:
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._waiting or self._spare or self._closed, timeout=idle_s
            ):
                return []
            if not self._waiting:
                spare, self._spare = self._spare, []
                return spare
            first = self._waiting.popleft()
            if first.alone:
                return [first]
            batch = [first]
            run_at = first.submitted_at + self._max_wait_s
            while True:
                self._take_into(batch)
                left_s = run_at - time.monotonic()
                if len(batch) >= self._max_batch or left_s <= 0 or self._closed:
                    return batch
                self._changed.wait(left_s)

    def _forget_cancelled(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.future.cancelled())

    def _take_into(self, batch: list[_Ticket[Item, Result]]) -> None:
        held: deque[_Ticket[Item, Result]] = deque()
        while self._waiting and len(batch) < self._max_batch:
            ticket = self._waiting.popleft()
            (held if ticket.alone else batch).append(ticket)
        self._waiting.extendleft(reversed(held))


def _fail(tickets: Iterable[_Ticket[Item, Result]], error: type[TransientError]) -> None:
    for ticket in tickets:
        if ticket.future.set_running_or_notify_cancel():
            ticket.future.set_exception(error())


def _checked(outcomes: Sequence[Result | Exception], count: int) -> Sequence[Result | Exception]:
    if len(outcomes) != count:
        message = f"A batch of {count} items gave {len(outcomes)} outcomes."
        raise CountMismatch(message)
    return outcomes
