"""The detector: one image, one score, whatever stands beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from detection.branches import AlignedBranch
from detection.bundle import BundleError, BundleManifest, load_bundle, write_manifest
from detection.detector import Detector, ImageTooSmall, NotFinite
from detection.fusion import at_prior
from detection.score import Label
from tests.support.bundles.tiny_bundle import build_tiny_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.aligned import AlignedNet
    from detection.score import Score

#: Largest difference of one image's logits between two batches, float32 on a CPU.
TOLERANCE = 1e-4
SIZES = ((64, 64), (65, 131), (200, 64), (97, 300), (128, 128), (260, 190))


def image(height: int, width: int) -> NDArray[np.uint8]:
    """A smooth random image that is the same for the same size."""
    rng = np.random.default_rng(height * 10_007 + width)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


def aligned_network(detector: Detector) -> AlignedNet:
    """The network of a detector's aligned branch."""
    branch = detector.branches["aligned"]
    assert isinstance(branch, AlignedBranch)
    return branch.network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with both branches."""
    return build_tiny_bundle(tmp_path_factory.mktemp("detector") / "tiny").folder


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    """The detector of that bundle."""
    return Detector.load(folder)


@pytest.fixture(scope="module")
def alone(detector: Detector) -> dict[tuple[int, int], Score]:
    """What each of the sizes gets by itself."""
    return {size: detector.score([image(*size)])[0] for size in SIZES}


def test_a_score_does_not_depend_on_its_batch(detector: Detector) -> None:
    """Alone, in a batch of mixed sizes past the chunk, and in another order: the same logits."""
    images = [image(*size) for size in SIZES] * 6
    together = detector.score(images)
    turned = detector.score(images[::-1])[::-1]
    for index, size in enumerate(SIZES):
        (alone,) = detector.score([image(*size)])
        for other in (together[index], turned[index], together[index + 30]):
            assert other.label == alone.label
            for branch, logit in alone.branches.items():
                assert other.branches[branch] == pytest.approx(logit, abs=TOLERANCE)
            assert other.error_map is not None
            np.testing.assert_allclose(other.error_map, alone.error_map, atol=1e-3)


@given(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_any_batch_in_any_order_gives_each_image_its_own_score(
    detector: Detector, alone: dict[tuple[int, int], Score], sizes: list[tuple[int, int]]
) -> None:
    """Whatever sizes stand together, repeated or not: what an image gets, it gets alone."""
    scores = detector.score([image(*size) for size in sizes])
    assert len(scores) == len(sizes)
    for size, score in zip(sizes, scores, strict=True):
        assert score.label is alone[size].label
        assert dict(score.branches) == pytest.approx(dict(alone[size].branches), abs=TOLERANCE)


@pytest.mark.parametrize(
    "laid_out",
    [
        np.asfortranarray,
        lambda pixels: pixels[::-1, ::-1].copy()[::-1, ::-1],
        lambda pixels: np.pad(pixels, ((3, 3), (5, 0), (0, 0)))[3:-3, 5:],
        lambda pixels: np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape),
    ],
    ids=["column-major", "negative strides", "part of a larger array", "read-only"],
)
def test_how_pixels_lie_in_memory_makes_no_difference(
    detector: Detector,
    alone: dict[tuple[int, int], Score],
    laid_out: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    """Strides, padding and write protection are no part of a picture."""
    (score,) = detector.score([laid_out(image(97, 300))])
    assert dict(score.branches) == pytest.approx(dict(alone[97, 300].branches), abs=TOLERANCE)


@given(
    kind=st.sampled_from(["int8", "uint16", "int64", "float16", "float32", "float64", "bool"]),
    channels=st.sampled_from([1, 2, 3, 4]),
)
@settings(max_examples=15, deadline=None)
def test_only_rgb_bytes_are_scored(detector: Detector, kind: str, channels: int) -> None:
    """Any other dtype or number of channels is refused by name and not guessed at."""
    with pytest.raises(ValueError, match=rf"{kind} \(64, 64, {channels}\)"):
        detector.score([np.zeros((64, 64, channels), kind)])
    if channels != 3:
        with pytest.raises(ValueError, match=rf"uint8 \(64, 64, {channels}\)"):
            detector.score([np.zeros((64, 64, channels), np.uint8)])


@given(height=st.integers(64, 320), width=st.integers(64, 320))
@settings(max_examples=12, deadline=None)
def test_every_size_from_64_pixels_scores(detector: Detector, height: int, width: int) -> None:
    """Any size gives finite logits, a probability, and a map of the stated view."""
    (score,) = detector.score([image(height, width)])
    assert set(score.branches) == {"lare", "aligned"}
    assert all(np.isfinite(logit) for logit in score.branches.values())
    assert 0 <= score.probability <= 1
    assert score.error_map is not None
    assert score.error_map.shape == (16, 16)
    assert score.error_map.dtype == np.float32


def test_a_score_adds_up(detector: Detector) -> None:
    """Probability, label and deciding branch follow from the branch logits by the manifest."""
    noise = np.random.default_rng(7).integers(0, 256, (97, 300, 3), dtype=np.uint8)
    (score,) = detector.score([noise])
    manifest = detector.bundle.manifest
    logit = manifest.fusion.logit(score.branches)
    assert score.probability == pytest.approx(at_prior(logit, manifest.policy.prior))
    assert score.prior == manifest.policy.prior
    expected = Label.REAL if logit < 0.5 else Label.UNSURE if logit < 2 else Label.GENERATED
    assert score.label is expected
    assert score.decided_by in score.branches


def test_tile_logits_average_to_the_aligned_logit(detector: Detector) -> None:
    """The evidence is what was decided on: the mean of the tiles is the branch's logit."""
    picture = image(260, 190)
    _, score = detector.score([image(64, 64), picture])
    tiles = score.tiles
    mean = sum(tile.logit for tile in tiles) / len(tiles)
    assert mean == pytest.approx(score.branches["aligned"], abs=TOLERANCE)
    for tile in tiles:
        assert 0 <= tile.top <= 260 - tile.height
        assert 0 <= tile.left <= 190 - tile.width
        cut = picture[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        (alone,) = detector.score([np.ascontiguousarray(cut)])[0].tiles
        assert alone.logit == pytest.approx(tile.logit, abs=TOLERANCE)


def test_tiles_cost_no_second_pass(folder: Path) -> None:
    """The network reads each tile that a score tells of once."""
    detector = Detector.load(folder)
    passed: list[int] = []
    aligned_network(detector).register_forward_hook(
        lambda _net, given, _out: passed.append(len(given[0]))
    )
    scores = detector.score([image(260, 190), image(64, 64)])
    assert [len(score.tiles) for score in scores] == [4, 1]
    assert sum(passed) == 5


@pytest.mark.parametrize("branch", ["lare", "aligned"])
def test_each_branch_is_usable_alone(tmp_path: Path, branch: str) -> None:
    """A bundle may hold either branch; only lare makes a map, only aligned reads tiles."""
    detector = Detector(build_tiny_bundle(tmp_path / branch, branches=(branch,)))
    (score,) = detector.score([image(64, 64)])
    assert set(score.branches) == {branch}
    assert score.decided_by == branch
    assert (score.error_map is not None) == (branch == "lare")
    assert bool(score.tiles) == (branch == "aligned")
    detector.self_check()


def test_no_images_have_no_scores(detector: Detector) -> None:
    """An empty batch is no error."""
    assert detector.score([]) == []


def test_what_is_no_image_is_refused(detector: Detector) -> None:
    """Too small, another dtype and another shape are told apart."""
    with pytest.raises(ImageTooSmall, match="63 x 64"):
        detector.score([image(64, 64), image(64, 64)[:, :63]])
    with pytest.raises(ValueError, match="float32"):
        detector.score([image(64, 64).astype(np.float32)])
    with pytest.raises(ValueError, match=r"\(64, 64\)"):
        detector.score([image(64, 64)[..., 0]])


def test_bfloat16_stays_near_float32(folder: Path) -> None:
    """A bundle that states bfloat16 moves logits by a few hundredths; the golden image holds."""
    bundle = load_bundle(folder)
    manifest = bundle.manifest.model_copy(update={"arithmetic": "bfloat16"})
    half = Detector(replace(bundle, manifest=manifest))
    half.self_check()
    images = [image(*size) for size in SIZES]
    for exact, rough in zip(Detector.load(folder).score(images), half.score(images), strict=True):
        for branch, logit in exact.branches.items():
            assert rough.branches[branch] == pytest.approx(logit, abs=0.05)


def test_what_is_no_number_is_no_verdict(folder: Path) -> None:
    """An overflow names the branch; nothing is labelled, least of all real."""
    detector = Detector.load(folder)
    with torch.no_grad():
        aligned_network(detector).head.bias.fill_(torch.inf)
    with pytest.raises(NotFinite, match="the aligned branch gives inf on cpu in float32"):
        detector.score([image(64, 64)])


def test_a_device_that_computes_otherwise_fails_the_self_check(folder: Path) -> None:
    """A network whose weights were hit gives the golden image another logit, and says so."""
    detector = Detector.load(folder)
    detector.self_check()
    with torch.no_grad():
        aligned_network(detector).head.bias.add_(0.5)
    with pytest.raises(BundleError, match=r"golden image of tiny gets .* from the aligned branch"):
        detector.self_check()


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """An architecture that the weights were not made for is refused with the file's name."""
    folder = build_tiny_bundle(tmp_path / "tiny").folder
    weights = load_file(folder / "aligned.safetensors")
    weights["more"] = torch.zeros(1)
    save_file(weights, folder / "aligned.safetensors")
    bundle = write_manifest(folder, load_manifest_of(folder))
    with pytest.raises(BundleError, match=r"aligned\.safetensors does not fit"):
        Detector(bundle)


def test_a_bank_smaller_than_the_ensemble_is_refused(tmp_path: Path) -> None:
    """A noise bank must hold as many noises as the ensemble averages."""
    folder = build_tiny_bundle(tmp_path / "tiny").folder
    constants = load_file(folder / "constants.safetensors")
    constants["noise_bank"] = constants["noise_bank"][:1].clone()
    save_file(constants, folder / "constants.safetensors")
    with pytest.raises(BundleError, match="noise bank is smaller"):
        Detector(write_manifest(folder, load_manifest_of(folder)))


def load_manifest_of(folder: Path) -> BundleManifest:
    """Read the manifest without checking the files."""
    return BundleManifest.model_validate_json((folder / "bundle.json").read_text())


def test_loading_verifies(folder: Path) -> None:
    """A detector's version is its bundle's digest."""
    assert Detector.load(folder).model_version == load_bundle(folder).model_version
