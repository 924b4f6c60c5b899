"""The aligned branch: its resolution, its tiles and how their logits become one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.aligned import AlignedNet, aggregate, cut_tiles, tile_origins
from detection.networks.branch_configs import AlignedConfig

SMALL = AlignedConfig(widths=(4, 8), depths=(1, 1), tile=64, max_tiles=4)


def test_the_stem_and_the_first_stage_keep_full_resolution() -> None:
    """Only later stages halve the grid: 32 pixels end as 16 after one further stage."""
    model = AlignedNet(SMALL).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []
    for module in (model.stem, model.body[0], model.body[1]):
        module.register_forward_hook(lambda _m, _i, output: seen.append(tuple(output.shape)))
    with torch.inference_mode():
        assert model(images).shape == (2,)
    assert seen == [(2, 4, 32, 32), (2, 4, 32, 32), (2, 8, 16, 16)]


def test_the_residual_is_what_a_binomial_blur_removes() -> None:
    """The stem sees the colours and four times their difference from a 5 x 5 binomial blur."""
    model = AlignedNet(SMALL).eval()
    image = torch.zeros(1, 3, 9, 9)
    image[0, 1, 4, 4] = 1.0
    stacked: list[torch.Tensor] = []
    model.stem.register_forward_pre_hook(lambda _m, inputs: stacked.append(inputs[0]))
    with torch.inference_mode():
        model(image)
    (seen,) = stacked
    torch.testing.assert_close(seen[:, :3], image)
    row = np.array([1, 4, 6, 4, 1]) / 16
    expected = -4 * np.outer(row, row)
    expected[2, 2] += 4
    np.testing.assert_allclose(seen[0, 4, 2:7, 2:7].numpy(), expected, atol=1e-6)
    assert float(seen[0, 3].abs().max()) == 0


def test_gradients_reach_every_parameter() -> None:
    """Every parameter of the network learns."""
    torch.manual_seed(1)
    model = AlignedNet(SMALL).train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    tile=st.sampled_from([32, 64, 128]),
    most=st.integers(1, 20),
)
@settings(max_examples=300, deadline=None)
def test_tiles_lie_inside_and_cover_what_they_can(
    height: int, width: int, tile: int, most: int
) -> None:
    """At most `most` distinct tiles, inside the image, covering it when enough are."""
    origins = tile_origins(height, width, tile=tile, max_tiles=most)
    assert origins == tile_origins(height, width, tile=tile, max_tiles=most)
    assert 1 <= len(origins) <= most
    assert len(set(origins)) == len(origins)
    for top, left in origins:
        assert 0 <= top <= max(0, height - tile)
        assert 0 <= left <= max(0, width - tile)
    needed = -(-height // tile) * -(-width // tile)
    if needed <= most:
        assert len(origins) == needed
        for starts, side in (({t for t, _ in origins}, height), ({c for _, c in origins}, width)):
            reached = 0
            for start in sorted(starts):
                assert start <= reached
                reached = start + tile
            assert reached >= side


def test_tiles_are_the_images_own_pixels() -> None:
    """Tiles are cut, never resampled: their pixels are the image's, scaled to [-1, 1]."""
    image = np.random.default_rng(2).integers(0, 256, (130, 100, 3)).astype(np.uint8)
    tiles = cut_tiles(image, SMALL)
    origins = tile_origins(130, 100, tile=64, max_tiles=4)
    assert tiles.shape == (len(origins), 3, 64, 64)
    for tile, (top, left) in zip(tiles, origins, strict=True):
        pixels = ((tile + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, image[top : top + 64, left : left + 64])


def test_a_side_shorter_than_a_tile_is_mirrored() -> None:
    """A 64 x 40 image fills a 64-pixel tile with its own mirror image."""
    image = np.random.default_rng(3).integers(0, 256, (64, 40, 3)).astype(np.uint8)
    (tile,) = cut_tiles(image, SMALL)
    pixels = ((tile + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels[:, :40], image)
    np.testing.assert_array_equal(pixels[:, 40:], image[:, :15:-1][:, :24])


def test_tile_logits_are_averaged_image_by_image() -> None:
    """Tiles of one image never count for another."""
    logits = torch.tensor([1.0, 3.0, 10.0, -1.0, -2.0, -3.0])
    assert aggregate(logits, [2, 1, 3]).tolist() == [2.0, 10.0, -2.0]
