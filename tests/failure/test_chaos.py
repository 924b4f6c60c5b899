"""Random faults over a steady stream, with fixed seeds."""

from __future__ import annotations

import pytest

from tests.failure import chaos


@pytest.mark.timeout(420)
def test_one_minute_of_random_faults() -> None:
    """Nothing is lost, nothing is done twice, nobody innocent is quarantined."""
    assert chaos.run(1.0, seed=20261122) > 0


@pytest.mark.full
@pytest.mark.timeout(600)
def test_three_minutes_of_random_faults() -> None:
    """As above, longer and in another order."""
    assert chaos.run(3.0, seed=7) > 0
