"""What is nothing to accuse: blank, drawn and tiny images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.ndimage import convolve1d
from sklearn.datasets import load_sample_image

from detection.applicability import blank_share, even_share, inapplicable_reason
from detection.bundle import write_manifest
from detection.detector import Detector
from detection.evidence import describe
from detection.score import Label, Score
from tests.support.bundles.tiny_bundle import build_tiny_bundle, operating_points

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RNG = np.random.default_rng(5)
#: Gradients of half a level a pixel, in three directions.
ROWS, COLUMNS = np.mgrid[:256, :256]
GRADIENT = np.stack([COLUMNS / 2, ROWS / 2, 255 - COLUMNS / 2], axis=2).astype(np.uint8)
SQUARES = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((25, 25)))
CHESSBOARD = np.repeat(SQUARES[..., None], 3, axis=2).astype(np.uint8)
#: A smooth scene under the noise of a sensor, one level and more.
PHOTOGRAPH = np.clip(GRADIENT + RNG.normal(0, 2, GRADIENT.shape), 0, 255).astype(np.uint8)


def flat(level: int, height: int = 200, width: int = 200) -> NDArray[np.uint8]:
    """An image of one colour."""
    return np.full((height, width, 3), level, np.uint8)


def test_blank_is_what_a_blur_leaves_alone() -> None:
    """The share equals scipy's, by a binomial blur of float64 tiles."""
    tiles = np.stack([PHOTOGRAPH[:64, :64], GRADIENT[:64, :64], CHESSBOARD[:64, :64]])
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    values = tiles.astype(np.float64)
    residual = values - convolve1d(convolve1d(values, kernel, axis=1), kernel, axis=2)
    expected = (np.abs(residual).max(axis=3) < 1)[:, 2:-2, 2:-2].mean()
    assert 0.1 < expected < 0.9
    assert blank_share(tiles) == pytest.approx(expected)


def test_even_is_what_equals_its_neighbours() -> None:
    """Counted pixel by pixel on squares of 25 with one edge in each direction."""
    board = CHESSBOARD[:50, :50]
    same = [
        (board[y, x] == board[y + 1, x]).all() and (board[y, x] == board[y, x + 1]).all()
        for y, x in np.ndindex(49, 49)
    ]
    assert even_share(board[None]) == pytest.approx(np.mean(same))
    assert even_share(PHOTOGRAPH[None]) < 0.1


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (flat(0), "100% of what was read is blank"),
        (flat(255), "100% of what was read is blank"),
        (GRADIENT, "is blank"),
        (CHESSBOARD, "drawn rather than photographed"),
        (PHOTOGRAPH[:127], "too small: smaller than the 128 pixels"),
        (PHOTOGRAPH[:, :64], "smaller than the 128 pixels"),
    ],
    ids=["black", "white", "gradient", "chessboard", "flat strip", "upright strip"],
)
def test_what_shows_nothing_is_outside(image: NDArray[np.uint8], why: str) -> None:
    """Each is told apart in words."""
    assert why in str(inapplicable_reason(image))


@pytest.mark.parametrize(("blank", "inside"), [(0, True), (0.5, True), (0.65, True), (0.85, False)])
def test_a_photograph_may_have_an_empty_part(blank: float, *, inside: bool) -> None:
    """Up to nearly three quarters of sky or wall leave something to read."""
    photograph = PHOTOGRAPH.copy()
    photograph[: int(blank * 256)] = 200
    assert (inapplicable_reason(photograph) is None) == inside


def accusing(folder: Path) -> Detector:
    """A detector that accuses everything."""
    bundle = build_tiny_bundle(folder, branches=("aligned",))
    points = tuple(
        point.model_copy(update={"threshold": -100.0}) for point in operating_points()[1:]
    )
    return Detector(
        write_manifest(folder, bundle.manifest.model_copy(update={"operating_points": points}))
    )


def test_what_shows_nothing_is_not_accused(tmp_path: Path) -> None:
    """Unsure, no likelier than the prior, with the reason in the caption; a photograph is judged.

    The neighbours in the batch change nothing, nor does the branch's logit.
    """
    detector = accusing(tmp_path / "tiny")
    blank, judged = detector.score([flat(7), PHOTOGRAPH])
    assert judged.label is Label.GENERATED
    assert judged.outside is None
    assert blank.label is Label.UNSURE
    assert blank.probability <= blank.prior
    assert "nearly nothing to look at" in str(blank.outside)
    assert any("Nothing can be told of such a picture (nearly" in line for line in describe(blank))
    assert blank.tiles[0].logit == pytest.approx(blank.branches["aligned"])


@pytest.mark.parametrize("image", [flat(7), CHESSBOARD], ids=["blank", "chessboard"])
def test_what_shows_nothing_is_not_called_real(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    """Unsure, with the kind in front of the reason, where the score alone says real.

    Score and branches are what they were; a photograph beside it is real.
    """
    detector = Detector(build_tiny_bundle(tmp_path / "tiny", branches=("aligned",)))
    manifest = detector.bundle.manifest
    points = tuple(point.model_copy(update={"threshold": 100.0}) for point in operating_points())
    folder = detector.bundle.folder
    update = {"operating_points": points}
    calm = Detector(write_manifest(folder, manifest.model_copy(update=update)))
    score, judged = calm.score([image, PHOTOGRAPH])
    assert score.label is Label.UNSURE
    assert str(score.outside).startswith("nearly nothing to look at: ")
    (before,) = calm._score_once([image])
    assert before.label is Label.REAL
    assert score.probability == min(before.probability, before.prior)
    assert score.branches == before.branches
    assert (judged.label, judged.outside) == (Label.REAL, None)
    assert score.distance is None
    assert judged.distance is not None
    assert judged.distance < 0


@pytest.mark.parametrize("level", [128, 0])
def test_the_shipped_detector_accuses_no_blank_image(level: int) -> None:
    """It says unsure, no likelier than the prior."""
    (score,) = Detector.load("small").score([flat(level, 256, 256)])
    assert score.label is Label.UNSURE
    assert score.probability <= score.prior


def test_what_is_unlike_all_that_was_learnt_from_is_not_judged(tmp_path: Path) -> None:
    """Beyond the novelty that its backbone allows an image is unsure, and the reason says so."""
    bundle = build_tiny_bundle(tmp_path / "tiny", branches=("backbone",))
    assert bundle.manifest.backbone is not None
    (judged,) = Detector(bundle).score([PHOTOGRAPH])
    assert judged.outside is None

    def strict(most: float) -> Score:
        backbone = replace(bundle.manifest.backbone, max_novelty=most)
        manifest = bundle.manifest.model_copy(update={"backbone": backbone})
        (score,) = Detector(write_manifest(bundle.folder, manifest)).score([PHOTOGRAPH])
        return score

    novel, familiar = strict(-50.0), strict(50.0)
    assert novel.label is Label.UNSURE
    assert novel.probability <= novel.prior
    assert novel.distance is None
    assert str(novel.outside).startswith("unlike what was learnt from: ")
    assert (familiar.label, familiar.branches) == (judged.label, judged.branches)


def test_the_shipped_detector_does_not_judge_noise() -> None:
    """Nothing that it learnt from is like it; a photograph of a pagoda is judged."""
    noise = RNG.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    novel, judged = Detector.load("small").score([noise, load_sample_image("china.jpg")])
    assert novel.label is Label.UNSURE
    assert str(novel.outside).startswith("unlike what was learnt from: ")
    assert judged.outside is None
