"""A bound on the decoded bytes in flight."""

from __future__ import annotations

import threading
import time
from collections import deque

from detection.errors import TransientError


class BudgetTimeout(TransientError):
    """No room for the decoded image in the budget of bytes in flight."""


class ByteBudget:
    """Grants bytes first come, first served, so that a large image is never starved.

    A reservation larger than the whole budget is granted when nothing else is held. Never
    deadlocks as long as a holder never waits for a second reservation.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """Bytes reserved now."""
        with self._changed:
            return self._used_bytes

    def acquire(self, size_bytes: int, *, wait_s: float) -> None:
        """Reserve bytes; raises `BudgetTimeout` when there is no room within `wait_s`."""
        turn = object()
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._queue.append(turn)
            try:
                granted = self._changed.wait_for(
                    lambda: self._queue[0] is turn and self._fits(size_bytes),
                    timeout=max(0.0, deadline - time.monotonic()),
                )
                if not granted:
                    raise BudgetTimeout
                self._used_bytes += size_bytes
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()

    def release(self, size_bytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._used_bytes -= size_bytes
            self._changed.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        return self._used_bytes == 0 or self._used_bytes + size_bytes <= self._limit_bytes
