"""The gate that lets a suspect be alone."""

from __future__ import annotations

import threading

import pytest

from tests.support.waiting import eventually
from worker.scoring.isolation_lock import LockTimeout, SharedExclusiveLock


def test_many_are_inside_together() -> None:
    """Ordinary checks do not wait for each other."""
    lock = SharedExclusiveLock()
    with lock.shared(wait_s=0), lock.shared(wait_s=0):
        pass


def test_nobody_is_beside_one_that_is_alone() -> None:
    """Neither an ordinary check nor a second suspect enters while a suspect is inside."""
    lock = SharedExclusiveLock()
    with lock.exclusive(wait_s=0):
        with pytest.raises(LockTimeout), lock.shared(wait_s=0.01):
            pass
        with pytest.raises(LockTimeout), lock.exclusive(wait_s=0.01):
            pass
    with lock.shared(wait_s=0), pytest.raises(LockTimeout), lock.exclusive(wait_s=0.01):
        pass


def test_who_waits_to_be_alone_is_not_starved() -> None:
    """Those who come later wait until the suspect was inside; one that gave up blocks nobody."""
    lock = SharedExclusiveLock()
    entered = threading.Event()

    def suspect() -> None:
        with lock.exclusive(wait_s=10):
            entered.set()

    with lock.shared(wait_s=0):
        thread = threading.Thread(target=suspect)
        thread.start()

        def blocked() -> bool:
            try:
                with lock.shared(wait_s=0):
                    return False
            except LockTimeout:
                return True

        eventually(blocked)
        assert not entered.is_set()
    assert entered.wait(10)
    thread.join()
    with lock.shared(wait_s=1):
        pass
