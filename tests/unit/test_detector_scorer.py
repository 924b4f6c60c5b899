"""The real scorer: its golden image is one that a sound device scores as stated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tinybundle import build_tiny_bundle
from worker.detector_scorer import DetectorScorer
from worker.settings import Scoring

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_golden_image_scores_within_its_tolerance(tmp_path: Path, dtype: str) -> None:
    """The probability that the bundle states is the one that scoring gives."""
    folder = build_tiny_bundle(tmp_path / "tiny").folder
    settings = Scoring.model_validate({"bundle": str(folder), "device": "cpu", "dtype": dtype})
    scorer = DetectorScorer.load(settings)
    golden = scorer.golden()
    (score,) = scorer.score([golden.image])
    assert score.probability == pytest.approx(golden.probability, abs=golden.tolerance)
    assert 0 < golden.tolerance < 0.1
