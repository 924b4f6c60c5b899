"""The embedded bundle on photographs: a file's score is the file's alone."""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
import pytest

from detection.detector import Detector
from detection.intake.decode import decode
from worker.demo.photographs import PHOTOGRAPHS
from worker.scoring.file_scoring import intake_limits
from worker.settings import Intake

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def detector() -> Detector:
    """The embedded bundle on the CPU in float32."""
    return Detector.load("small")


@pytest.fixture(scope="module")
def photographs() -> list[NDArray[np.uint8]]:
    """The photographs of the wheels, decoded as uploads are."""
    limits = intake_limits(Intake())
    return [decode(one.path.read_bytes(), limits=limits).pixels for one in PHOTOGRAPHS]


@pytest.fixture(scope="module")
def alone(detector: Detector, photographs: list[NDArray[np.uint8]]) -> list[float]:
    """Each photograph's score when it is scored by itself."""
    return [detector.score([pixels])[0].probability for pixels in photographs]


def test_a_batch_of_32_changes_no_score(
    detector: Detector, photographs: list[NDArray[np.uint8]], alone: list[float]
) -> None:
    """A photograph among 31 others gets the score that it gets alone."""
    batch = list(islice(cycle(photographs), 32))
    scores = [score.probability for score in detector.score(batch)]
    assert scores == pytest.approx(list(islice(cycle(alone), 32)), abs=TOLERANCE)


def test_another_order_changes_no_score(
    detector: Detector, photographs: list[NDArray[np.uint8]], alone: list[float]
) -> None:
    """A photograph gets the same score wherever it stands in a batch."""
    order = np.random.default_rng(0).permutation(len(photographs))
    scores = [score.probability for score in detector.score([photographs[at] for at in order])]
    assert scores == pytest.approx([alone[at] for at in order], abs=TOLERANCE)


def test_photographs_do_not_all_score_alike(alone: list[float]) -> None:
    """The scores that must agree are no constant."""
    assert max(alone) - min(alone) > 100 * TOLERANCE
