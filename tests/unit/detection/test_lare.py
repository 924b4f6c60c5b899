"""The LaRE map against a slow float32 reference, one image and one noise at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import EPSILON, FLOW, VELOCITY, NoiseSchedule
from detection.lare import center_crop_resize, lare_map, to_minus_one_one
from tests.support.bundles.tiny_bundle import tiny_autoencoder, tiny_predictor

STEP = 200
TEXT = noise_bank((1, 3, 8), seed=1)
NOISES = noise_bank((3, 4, 8, 8), seed=2)


def alphas() -> torch.Tensor:
    """Products of the linear schedule from 1e-4 to 0.02 over 1000 steps, by their definition."""
    kept, products = 1.0, []
    for index in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * index / 999)
        products.append(kept)
    return torch.tensor(products)


def build(prediction: str) -> Generator:
    """A tiny generator with scaling 0.5 and shift 0.1."""
    schedule = NoiseSchedule(
        prediction=prediction,
        steps=1000,
        alphas_cumprod=None if prediction == FLOW else alphas(),
    )
    generator = Generator(
        tiny_autoencoder(), tiny_predictor(), schedule, {"encoder_hidden_states": TEXT}
    )
    return generator.eval().requires_grad_(False)


def slow_map(generator: Generator, view: torch.Tensor, prediction: str) -> torch.Tensor:
    """Compute the error of one view (3, H, W) from the formulas, one noise after the other."""
    moments = generator.autoencoder.encode(view[None]).latent_dist
    latent = (moments.mean - 0.1) * 0.5
    kept = float(alphas()[STEP])
    total = torch.zeros_like(latent)
    for noise in NOISES:
        if prediction == FLOW:
            noised, target = 0.8 * latent + 0.2 * noise, noise - latent
        else:
            noised = kept**0.5 * latent + (1 - kept) ** 0.5 * noise
            target = noise[None]
            if prediction == VELOCITY:
                target = kept**0.5 * noise - (1 - kept) ** 0.5 * latent
        answer = generator.predictor(
            noised, timestep=torch.tensor([STEP]), encoder_hidden_states=TEXT
        ).sample
        total += (answer - target) ** 2
    return total[0] / len(NOISES)


@pytest.mark.parametrize("prediction", [EPSILON, VELOCITY, FLOW])
def test_the_map_is_the_mean_squared_error_of_one_prediction(prediction: str) -> None:
    """Scaling, shift, mixing, target and ensemble agree with the formulas for every kind."""
    generator = build(prediction)
    views = noise_bank((3, 3, 32, 32), seed=4).clamp(-1, 1)
    with torch.inference_mode():
        found = lare_map(generator, views, NOISES, STEP)
        assert found.shape == (3, 4, 8, 8)
        assert found.dtype == torch.float32
        for view, errors in zip(views, found, strict=True):
            torch.testing.assert_close(errors, slow_map(generator, view, prediction))


def test_the_map_of_an_image_does_not_depend_on_its_batch() -> None:
    """The same bank serves every image, whatever stands beside it and in whatever order."""
    generator = build(EPSILON)
    views = noise_bank((3, 3, 32, 32), seed=4).clamp(-1, 1)
    with torch.inference_mode():
        together = lare_map(generator, views, NOISES, STEP)
        turned = lare_map(generator, views.flip(0), NOISES, STEP).flip(0)
        alone = torch.cat([lare_map(generator, view[None], NOISES, STEP) for view in views])
    torch.testing.assert_close(together, turned)
    torch.testing.assert_close(together, alone)


def test_half_precision_stays_near_float32() -> None:
    """Under bfloat16 the map differs from float32 by a few per cent of its mean, no more."""
    generator = build(EPSILON)
    views = noise_bank((2, 3, 32, 32), seed=4).clamp(-1, 1)
    with torch.inference_mode():
        exact = lare_map(generator, views, NOISES, STEP)
        with torch.autocast("cpu", torch.bfloat16):
            half = lare_map(generator, views, NOISES, STEP)
    assert half.dtype == torch.float32
    assert float((half - exact).abs().mean() / exact.mean()) < 0.05


def test_the_noise_bank_is_a_function_of_its_seed() -> None:
    """The same seed gives the same unit Gaussian noise, another seed another."""
    bank = noise_bank((4, 4, 32, 32), seed=7)
    torch.testing.assert_close(bank, noise_bank((4, 4, 32, 32), seed=7), rtol=0, atol=0)
    assert not torch.equal(bank, noise_bank((4, 4, 32, 32), seed=8))
    assert abs(float(bank.mean())) < 0.05
    assert abs(float(bank.std()) - 1) < 0.05


@given(height=st.integers(64, 300), width=st.integers(64, 300), side=st.sampled_from([64, 128]))
@settings(max_examples=30, deadline=None)
def test_the_view_is_the_scaled_centre_square(height: int, width: int, side: int) -> None:
    """It is the centre square cut out and scaled, and what lies well outside has no influence."""
    rng = np.random.default_rng(height * 301 + width)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    view = center_crop_resize(image, side)
    assert view.shape == (side, side, 3)
    assert view.dtype == np.uint8
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = Image.fromarray(image[top : top + square, left : left + square])
    expected = np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))
    # The filter also reads a few pixels beyond the square's edge, and Pillow rounds box edges.
    reach = math.ceil(2 * max(side / square, square / side)) + 2
    inner = slice(reach, -reach)
    difference = np.abs(view[inner, inner].astype(int) - expected[inner, inner])
    assert difference.mean() < 1.5
    changed = rng.integers(0, 256, image.shape, dtype=np.uint8)
    rows = slice(max(0, top - reach), top + square + reach)
    columns = slice(max(0, left - reach), left + square + reach)
    changed[rows, columns] = image[rows, columns]
    np.testing.assert_array_equal(center_crop_resize(changed, side), view)


def test_views_enter_the_network_between_minus_one_and_one() -> None:
    """Black is -1, white is 1, and channels come first."""
    views = np.zeros((1, 2, 2, 3), np.uint8)
    views[0, 0, 1] = (255, 0, 255)
    tensor = to_minus_one_one(views)
    assert tensor.shape == (1, 3, 2, 2)
    assert tensor[0, :, 0, 1].tolist() == [1, -1, 1]
    assert tensor[0, :, 1, 1].tolist() == [-1, -1, -1]
