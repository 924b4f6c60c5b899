"""The backbone branch: its view, its features, and where its logit comes from."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import relu6

from detection.backbone import Backbone, to_views, whole_view
from detection.detector import Detector
from detection.errors import SettingsError
from detection.networks.branch_configs import BackboneConfig
from tests.support.bundles.tiny_bundle import build_tiny_bundle

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = BackboneConfig(
    side=64,
    shrink_to=96,
    stages=("blocks.1", "blocks.3"),
    real=("real:drawing", "real:photograph"),
    generated=("generated:a", "generated:b", "generated:c"),
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A backbone of random weights with a head of random weights."""
    torch.manual_seed(4)
    made = Backbone(CONFIG)
    nn.init.normal_(made.head.weight, std=0.1)
    nn.init.normal_(made.head.bias)
    return made.eval().requires_grad_(requires_grad=False)


def views(count: int) -> torch.Tensor:
    """Random views of the configured side."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return to_views(pixels)


def test_features_are_means_and_spreads_of_the_stages(backbone: Backbone) -> None:
    """They equal what numpy computes from the network's own intermediate maps."""
    batch = views(3)
    maps = []
    network = backbone.network
    hidden = relu6(network.bn1(network.conv_stem((batch - 127) / 128)))
    for number, stage in enumerate(network.blocks):
        hidden = stage(hidden)
        if number in {1, 3}:
            maps.append(hidden.numpy())
    expected = np.concatenate(
        [part for one in maps for part in (one.mean((2, 3)), one.std((2, 3), ddof=1))], axis=1
    )
    np.testing.assert_allclose(backbone.features(batch).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_contributions_average_to_the_logit(backbone: Backbone) -> None:
    """The map's mean is the logit: the log-odds of generated classes against real ones."""
    batch = views(3)
    logits, contributions, _ = backbone(batch)
    shares = backbone.head(backbone.features(batch)).softmax(1)
    expected = torch.log(shares[:, 2:].sum(1) / shares[:, :2].sum(1))
    assert contributions.shape == (3, 16, 16)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(contributions.mean((1, 2)), logits)
    assert contributions.std() > 0


def around(features: np.ndarray, side: int) -> np.ndarray:
    """Means and spreads (2 C, h, w) of the squares about the cells of (C, h, w), cell by cell."""
    channels, height, width = features.shape
    found, reach = np.zeros((2 * channels, height, width)), side // 2
    for y, x in np.ndindex(height, width):
        rows = slice(max(0, y - reach), y + reach + 1)
        square = features[:, rows, max(0, x - reach) : x + reach + 1]
        found[:channels, y, x] = square.mean((1, 2))
        found[channels:, y, x] = square.std((1, 2), ddof=1)
    return found


def test_the_map_is_the_heads_word_on_each_cells_surroundings(backbone: Backbone) -> None:
    """It is what numpy makes of the stages: log-odds by squares of 7 fine cells, 3 coarse ones."""
    batch = views(1)
    network, head = backbone.network, backbone.head
    hidden, maps = relu6(network.bn1(network.conv_stem((batch - 127) / 128))), []
    for number, stage in enumerate(network.blocks):
        hidden = stage(hidden)
        if number in {1, 3}:
            maps.append(hidden[0].double().numpy())
    rows = [
        np.kron(around(one, side), np.ones((1, 16 // one.shape[1], 16 // one.shape[1])))
        for one, side in zip(maps, (7, 3), strict=True)
    ]
    scores = np.tensordot(head.weight.double().numpy(), np.concatenate(rows), 1)
    odds = np.exp(scores + head.bias.double().numpy()[:, None, None])
    drawn = np.log(odds[2:].sum(0) / odds[:2].sum(0))
    found = backbone(batch)[1][0].numpy()
    np.testing.assert_allclose(found - found.mean(), drawn - drawn.mean(), rtol=1e-3, atol=1e-3)


def test_novelty_is_the_mean_squared_z_score(backbone: Backbone) -> None:
    """It is the logarithm of what numpy computes, about 0 for features like those learnt from."""
    learnt = backbone.features(views(40)).double().numpy()
    made = Backbone(CONFIG)
    made.load_state_dict(backbone.state_dict())
    made.eval()
    made.centre.copy_(torch.from_numpy(learnt.mean(0)))
    made.spread.copy_(torch.from_numpy(learnt.std(0)))
    batch = torch.cat([views(1), torch.full((1, 3, 64, 64), 30.0)])
    with torch.inference_mode():
        found = made(batch)[2].numpy()
        rows = made.features(batch).double().numpy()
    scores = (rows - learnt.mean(0)) / learnt.std(0)
    np.testing.assert_allclose(found, np.log((scores**2).mean(1)), rtol=1e-3)
    assert abs(found[0]) < 1 < found[1]


def saved_once(pixels: np.ndarray) -> Image.Image:
    """Save as JPEG of the configured quality, with halved chroma, and open it again."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=CONFIG.quality, subsampling=2)
    return Image.open(buffer)


def test_a_large_picture_is_averaged_over_areas_first() -> None:
    """The centre square is reduced by averages of blocks, saved once, then scaled to the side."""
    blocks = np.random.default_rng(3).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = np.zeros((192, 400, 3), dtype=np.uint8)
    image[:, 104:296] = np.kron(blocks, np.ones((2, 2, 1), dtype=np.uint8))
    expected = saved_once(blocks).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(whole_view(image, CONFIG), np.asarray(expected))


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(3072, 4080, 6), (1024, 6144, 2), (2048, 512, 1), (150, 200, 1)],
    ids=["12 megapixels", "panorama", "tall screenshot", "thumbnail"],
)
def test_pictures_of_every_shape_are_seen_alike(height: int, width: int, factor: int) -> None:
    """The shipped view is the mean of the blocks of the centre square, saved once and scaled."""
    config = BackboneConfig()
    noise = np.random.default_rng(7).integers(20, 230, (24, 32, 3), dtype=np.uint8)
    size = (width // factor, height // factor)
    means = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR))
    image = means.repeat(factor, axis=0).repeat(factor, axis=1)
    if factor > 1:  # columns in turn darker and lighter, which an average does not show
        image = image + np.tile([[-8], [8]], (width // 2, 1))
    square = min(means.shape[:2])
    top, left = ((length - square) // 2 for length in means.shape[:2])
    buffer = io.BytesIO()
    cut = Image.fromarray(means[top : top + square, left : left + square])
    cut.save(buffer, "JPEG", quality=config.quality, subsampling=2)
    side = (config.side, config.side)
    expected = Image.open(buffer).resize(side, Image.Resampling.BICUBIC)
    found = whole_view(image.astype(np.uint8), config)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_picture_of_the_views_size_is_only_saved_once() -> None:
    """Neither cut nor scaled, it is seen as the JPEG of it."""
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(whole_view(image, CONFIG), np.asarray(saved_once(image)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "efficientnet_lite_99"}, "no architecture named 'efficientnet_lite_99'"),
        ({"stages": ("blocks.1", "blocks.77")}, "has no stage blocks.77"),
    ],
)
def test_unknown_architectures_and_stages_are_named(changes: dict[str, str], message: str) -> None:
    """The error names what timm does not have."""
    with pytest.raises(SettingsError, match=message):
        Backbone(replace(CONFIG, **changes))


def test_a_bundle_of_the_backbone_alone_scores(tmp_path: Path) -> None:
    """Its one branch decides; the score says where it looked, and is the same in any batch."""
    detector = Detector(build_tiny_bundle(tmp_path / "tiny", branches=("backbone",)))
    rng = np.random.default_rng(5)
    images = [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for height, width in ((128, 128), (300, 140), (131, 260))
    ]
    together = detector.score(images)
    for image, score in zip(images, together, strict=True):
        (alone,) = detector.score([image])
        assert alone.branches.keys() == {"backbone"}
        assert alone.decided_by == "backbone"
        assert alone.branches["backbone"] == pytest.approx(score.branches["backbone"], abs=1e-4)
        assert score.contributions is not None
        assert score.contributions.mean() == pytest.approx(score.branches["backbone"], abs=1e-4)
        assert score.error_map is None
    detector.self_check()
