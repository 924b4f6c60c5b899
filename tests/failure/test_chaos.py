"""Random faults over a steady stream, with a fixed seed; `make chaos` does it for longer."""

from __future__ import annotations

import pytest

from tests.failure import chaos


@pytest.mark.timeout(420)
def test_one_minute_of_random_faults() -> None:
    """Nothing is lost, nothing is done twice, nobody innocent is quarantined."""
    assert chaos.run(1.0, seed=20261122) > 0
