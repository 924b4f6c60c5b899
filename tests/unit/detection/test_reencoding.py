"""Labels that do not survive a mild re-encoding."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.bundle import write_manifest
from detection.detector import Detector
from detection.fusion import at_prior
from detection.reencoding import mild_copies
from detection.score import Label
from tests.support.bundles.tiny_bundle import build_tiny_bundle, operating_points

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PICTURE = np.random.default_rng(3).integers(0, 256, (100, 140, 3), dtype=np.uint8)


def aligned_logit(detector: Detector, image: NDArray[np.uint8]) -> float:
    """The logit of the only branch of the bundle under test."""
    return detector.score([image])[0].branches["aligned"]


def with_threshold(folder: Path, threshold: float, *, steady: bool) -> Detector:
    """A bundle of one branch that flags from a threshold on."""
    bundle = build_tiny_bundle(folder, branches=("aligned",))
    _, flag, doubt = operating_points()
    points = (
        flag.model_copy(update={"threshold": threshold}),
        doubt.model_copy(update={"threshold": threshold - 100}),
    )
    policy = bundle.manifest.policy.model_copy(update={"steady": steady})
    update = {"operating_points": points, "policy": policy}
    return Detector(write_manifest(folder, bundle.manifest.model_copy(update=update)))


def test_the_copies_are_a_jpeg_of_quality_90_and_a_slight_resize() -> None:
    """They equal what Pillow makes of the picture, and the small side stays scorable."""
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG", quality=90)
    saved, shrunk = mild_copies(PICTURE, min_side=64)
    np.testing.assert_array_equal(saved, np.asarray(Image.open(buffer)))
    assert shrunk.shape == (95, 133, 3)
    assert mild_copies(PICTURE[:65], min_side=64)[1].shape == (64, 133, 3)


@pytest.mark.parametrize("steady", [True, False])
def test_a_label_that_flips_is_unsure_only_by_policy(tmp_path: Path, *, steady: bool) -> None:
    """Between the logits of the upload and its weakest copy: unsure if steady, else generated.

    A policy that reads the score instead of the label then meets that of the weakest copy.
    """
    probe = Detector(build_tiny_bundle(tmp_path / "probe", branches=("aligned",)))
    own = aligned_logit(probe, PICTURE)
    weakest = min(aligned_logit(probe, copy) for copy in mild_copies(PICTURE, min_side=64))
    assert weakest < own, "the picture must be one whose logit falls"
    detector = with_threshold(tmp_path / "bundle", (own + weakest) / 2, steady=steady)
    score = detector.score([PICTURE])[0]
    assert score.probability == pytest.approx(at_prior(weakest if steady else own, 0.5))
    assert score.label is (Label.UNSURE if steady else Label.GENERATED)
    assert score.operating_point == "fpr=0.01"
    assert score.branches["aligned"] == pytest.approx(own)


def test_a_label_that_holds_stays(tmp_path: Path) -> None:
    """Far above the threshold generated, far below real: the check changes neither."""
    low = with_threshold(tmp_path / "low", -50.0, steady=True)
    assert low.score([PICTURE])[0].label is Label.GENERATED
    high = with_threshold(tmp_path / "high", 150.0, steady=True)
    assert high.score([PICTURE])[0].label is Label.REAL


def test_only_what_would_be_flagged_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict of real costs one score even with the check on."""
    detector = with_threshold(tmp_path / "bundle", 150.0, steady=True)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr("detection.detector.mild_copies", refuse)
    assert detector.score([PICTURE])[0].label is Label.REAL
