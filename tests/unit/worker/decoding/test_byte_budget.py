"""The budget of bytes in flight."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.support.waiting import eventually
from worker.decoding.byte_budget import BudgetTimeout, ByteBudget


def test_what_fits_is_granted_and_what_does_not_waits() -> None:
    """The limit itself fits; one byte more does not."""
    budget = ByteBudget(10)
    budget.acquire(4, wait_s=0)
    budget.acquire(6, wait_s=0)
    with pytest.raises(BudgetTimeout):
        budget.acquire(1, wait_s=0.01)
    budget.release(6)
    budget.acquire(6, wait_s=0)
    assert budget.used_bytes == 10


def test_more_than_everything_is_granted_alone() -> None:
    """No image is too large for the budget, but then nothing else is in flight."""
    budget = ByteBudget(10)
    budget.acquire(100, wait_s=0)
    with pytest.raises(BudgetTimeout):
        budget.acquire(1, wait_s=0.01)
    budget.release(100)
    budget.acquire(1, wait_s=0)
    with pytest.raises(BudgetTimeout):
        budget.acquire(100, wait_s=0.01)


def test_a_large_one_is_not_starved_by_small_ones() -> None:
    """First come, first served: small ones that come later wait behind a large one."""
    budget = ByteBudget(10)
    budget.acquire(5, wait_s=0)
    granted = threading.Event()

    def large() -> None:
        budget.acquire(10, wait_s=10)
        granted.set()

    thread = threading.Thread(target=large)
    thread.start()
    eventually(lambda: len(budget._queue) == 1)
    with pytest.raises(BudgetTimeout):
        budget.acquire(1, wait_s=0.01)
    budget.release(5)
    assert granted.wait(10)
    thread.join()


def test_many_threads_stay_under_the_limit_and_all_finish() -> None:
    """Random reservations never exceed the limit together, and nobody waits for ever."""
    budget, excess = ByteBudget(100), []

    def use(seed: int) -> None:
        sizes = random.Random(seed)
        for _ in range(30):
            size = sizes.randint(1, 100)
            budget.acquire(size, wait_s=30)
            if budget.used_bytes > 100:
                excess.append(budget.used_bytes)
            time.sleep(0)
            budget.release(size)

    threads = [threading.Thread(target=use, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert excess == []
    assert budget.used_bytes == 0
