"""Training of the lare branch: maps that belong to the pixels beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import EPSILON, NoiseSchedule
from detection.lare import lare_map, to_minus_one_one
from detection.networks.branch_configs import LareConfig
from tests.support.bundles.tiny_bundle import tiny_autoencoder, tiny_predictor
from training.data.augmentation import AugmentationConfig
from training.data.manifest import Entry
from training.data.samples import Sample
from training.fit.lare_task import LareSample, LareTask, augmented_views, with_maps

SIDE, FACTOR = 64, 4
CONFIG = LareConfig(side=SIDE, step=200, ensemble=2)
NOISES = noise_bank((2, 4, SIDE // FACTOR, SIDE // FACTOR), seed=2)


def entry(label: str) -> Entry:
    """An image of a label."""
    return Entry(path=Path(label), label=label, set="s", family="", group=label)


def numbered(label: str) -> LareSample:
    """A view whose pixels say which cell of the map they lie in, and the map of those numbers."""
    cells = np.arange(64).reshape(8, 8)
    view = np.zeros((SIDE, SIDE, 3), np.uint8)
    view[..., 0] = np.kron(cells, np.ones((8, 8)))
    view[..., 1] = 200 if label == "generated" else 10
    return LareSample(entry(label), view, np.stack([cells, cells]).astype(np.float16))


def test_crops_and_flips_act_on_view_and_map_alike() -> None:
    """In every crop, flipped or not, a cell of the map lies under the pixels it was computed of."""
    task = LareTask([numbered("real"), numbered("generated")], crop=48, batch_size=16, factor=8)
    corners, steps = set(), set()
    for step in range(4):
        batch = task.batch(0, step)
        assert batch["views"].shape == (16, 3, 48, 48)
        assert batch["maps"].shape == (16, 2, 6, 6)
        for view, error, label in zip(*batch.values(), strict=True):
            np.testing.assert_array_equal(view[0], np.kron(error[0], np.ones((8, 8))))
            assert (view[1] == (200 if label else 10)).all()
            corners.add(float(error.min()))
            steps.add(float(error[0, 0, 1] - error[0, 0, 0]))
    assert len(corners) > 4, "crops are of one place only"
    assert steps == {1.0, -1.0}, "views must come as they are and flipped"


def test_maps_are_computed_after_photometric_changes() -> None:
    """The stored map is that of the stored view, which is no longer the sample's own picture."""
    process = NoiseSchedule(
        prediction=EPSILON, steps=1000, alphas_cumprod=torch.linspace(0.99, 0.01, 1000)
    )
    text = {"encoder_hidden_states": noise_bank((1, 3, 8), seed=1)}
    generator = Generator(tiny_autoencoder(), tiny_predictor(), process, text)
    generator.eval().requires_grad_(requires_grad=False)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    sample = Sample(entry("real"), pixels, lossy=False)
    recipe = AugmentationConfig(crop=SIDE, margin=0, resize_p=0, noise_p=1, noise_sigma=(20, 20))
    views = augmented_views([sample], recipe, CONFIG, copies=3, seed=0)
    items = list(with_maps(views, generator, NOISES, CONFIG, batch_size=2))
    assert [item.entry.label for item in items] == ["real"] * 3
    with torch.inference_mode():
        own = lare_map(generator, to_minus_one_one(pixels[None]), NOISES, CONFIG.step)[0].numpy()
        for item in items:
            expected = lare_map(
                generator, to_minus_one_one(np.stack([item.view])), NOISES, CONFIG.step
            )[0].numpy()
            assert item.error == pytest.approx(expected, rel=0.2, abs=0.2)
            far = np.abs(item.error - own).mean()
            assert far > 4 * np.abs(item.error - expected).mean()
