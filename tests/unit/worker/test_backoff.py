"""Waits between tries."""

from __future__ import annotations

from worker.backoff import backoff_s


def test_waits_double_up_to_the_longest() -> None:
    """The first wait is as stated, each further one twice as long, up to the bound."""
    waits = [backoff_s(failures, first_s=0.5, longest_s=30) for failures in range(8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_an_outage_of_any_length_has_a_wait() -> None:
    """After more failures than a float has powers of two, the wait is still the longest."""
    assert backoff_s(10_000, first_s=0.5, longest_s=30) == 30
