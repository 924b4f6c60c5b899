"""Augmentation: one draw, the same for both sides of a pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.augmentation import GRID, AugmentationConfig, AugmentedCrop, sample_crop
from training.data.codecs import Codec

#: Everything at once, so that each choice shows.
EVERYTHING = AugmentationConfig(
    crop=64, resize_p=1, blur_p=1, noise_p=1, colour_p=1, jpeg_p=0.5, webp_p=0.5, cutout_p=1
)


def picture(height: int = 200, width: int = 240, seed: int = 0) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain(**changes: object) -> AugmentedCrop:
    """A view that cuts 64 x 64 at (32, 16) and does nothing else."""
    view = sample_crop(
        np.random.default_rng(0),
        (200, 240),
        AugmentationConfig(
            crop=64,
            margin=0,
            resize_p=0,
            blur_p=0,
            noise_p=0,
            colour_p=0,
            jpeg_p=0,
            webp_p=0,
            cutout_p=0,
        ),
    )
    settled = {"top": 32, "left": 16, "height": 64, "width": 64, "turns": 0, "flip": False}
    return replace(view, **(settled | changes))


@given(seed=st.integers(0, 10**6), height=st.integers(64, 300), width=st.integers(64, 300))
@settings(max_examples=60, deadline=None)
def test_a_view_is_a_pure_function_of_the_image(seed: int, height: int, width: int) -> None:
    """Any draw gives the same crop twice, and the same to an image and its copy."""
    image = picture(height, width, seed)
    original = image.copy()
    view = sample_crop(np.random.default_rng(seed), image.shape, EVERYTHING)
    crop = view.apply(image)
    assert crop.shape == (64, 64, 3)
    assert crop.dtype == np.uint8
    assert crop.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(crop, view.apply(image.copy()))
    np.testing.assert_array_equal(image, original)
    again = sample_crop(np.random.default_rng(seed), image.shape, EVERYTHING)
    np.testing.assert_array_equal(crop, again.apply(image))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_both_sides_of_a_pair_are_cut_at_the_same_place(seed: int) -> None:
    """A partner that differs in one marked square keeps its mark where the image has it."""
    recipe = AugmentationConfig(
        crop=64, colour_p=0, noise_p=0, blur_p=0, jpeg_p=0, webp_p=0, cutout_p=0
    )
    image = np.full((160, 160, 3), 90, np.uint8)
    image[64:96, 64:96] = 200
    partner = image // 2
    view = sample_crop(np.random.default_rng(seed), image.shape, recipe)
    first, second = view.apply(image).astype(int), view.apply(partner).astype(int)
    assert np.abs(first - 2 * second).max() <= 4


def test_nothing_drawn_is_nothing_done() -> None:
    """Without augmentation a view is a plain cut."""
    image = picture()
    np.testing.assert_array_equal(plain().apply(image), image[32:96, 16:80])
    np.testing.assert_array_equal(plain(flip=True).apply(image), image[32:96, 16:80][:, ::-1])
    np.testing.assert_array_equal(plain(turns=1).apply(image), np.rot90(image[32:96, 16:80]))


def test_each_photometric_choice_does_what_it_says() -> None:
    """Gain and offset act per channel with rounding; noise has its deviation; a cutout is grey."""
    image = np.full((200, 240, 3), 100, np.uint8)
    coloured = plain(gain=(1.1, 1.0, 0.5), offset=7.4).apply(image)
    assert coloured[0, 0].tolist() == [117, 107, 57]
    noisy = plain(noise_sigma=5.0, noise_seed=1).apply(image)
    assert np.std(noisy.astype(float)) == pytest.approx(5, rel=0.05)
    cut = plain(cutout=(0.25, 0.5, 0.25)).apply(image)
    assert (cut[16:32, 32:48] == 128).all()
    assert (cut == 128).sum() == 16 * 16 * 3


def test_codecs_act_on_the_images_own_grid() -> None:
    """A cut that starts on the grid meets the first codec in the same blocks as the whole image."""
    smooth = np.kron(picture(25, 30), np.ones((8, 8, 1))).astype(np.uint8)
    codec = Codec("JPEG", 50, "4:4:4")
    whole = codec.apply(smooth)
    np.testing.assert_array_equal(plain(first=codec).apply(smooth), whole[32:96, 16:80])


@given(seed=st.integers(0, 10**6), height=st.integers(64, 700), width=st.integers(64, 700))
@settings(max_examples=100, deadline=None)
def test_regions_start_on_the_grid_and_lie_inside(seed: int, height: int, width: int) -> None:
    """Every drawn region is inside the image, on the 16-pixel grid, and fills the crop."""
    recipe = AugmentationConfig()
    view = sample_crop(np.random.default_rng(seed), (height, width), recipe)
    assert view.top % GRID == 0
    assert view.left % GRID == 0
    assert 0 <= view.top <= height - view.height
    assert 0 <= view.left <= width - view.width
    assert round(min(view.height, view.width) * view.scale) >= recipe.crop - 1


def test_codecs_lose_what_they_should() -> None:
    """JPEG and WebP come back in shape, worse at lower quality; subsampling costs colour."""
    image = np.kron(picture(25, 30), np.ones((8, 8, 1))).astype(np.uint8)

    def error(codec: Codec) -> float:
        restored = codec.apply(image)
        assert restored.shape == image.shape
        return float(np.abs(restored.astype(int) - image).mean())

    assert error(Codec("JPEG", 30)) > error(Codec("JPEG", 95))
    assert error(Codec("WEBP", 30)) > error(Codec("WEBP", 95))
    assert error(Codec("JPEG", 95, "4:2:0")) > error(Codec("JPEG", 95, "4:4:4"))
