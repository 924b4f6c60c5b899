"""A shared/exclusive lock: a suspect image is checked alone in its process.

A process that dies leaves every lease it held as a death. So that the next crash names one image,
an image with a death on record is leased and checked while this process holds no other lease.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from detection.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class LockTimeout(TransientError):
    """Other checks in this process did not end in time."""


class SharedExclusiveLock:
    """Shared/exclusive lock with priority for waiting exclusive holders."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._exclusive = False
        self._waiting_exclusive = 0

    @contextmanager
    def shared(self, *, wait_s: float) -> Iterator[None]:
        """Hold the lock beside other shared holders; raises `LockTimeout`."""
        with self._changed:
            self._wait(lambda: not self._exclusive and not self._waiting_exclusive, wait_s)
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self, *, wait_s: float) -> Iterator[None]:
        """Hold the lock alone; raises `LockTimeout`."""
        with self._changed:
            self._waiting_exclusive += 1
            try:
                self._wait(lambda: not self._exclusive and not self._shared, wait_s)
                self._exclusive = True
            finally:
                self._waiting_exclusive -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], wait_s: float) -> None:
        if not self._changed.wait_for(condition, timeout=wait_s):
            raise LockTimeout
