"""The feature space that a bundle gives to audits: one of its own branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detection.aligned import AlignedNet, cut_tiles
from detection.backbone import Backbone, to_views, whole_view
from detection.bundle import BundleError
from tests.support.bundles.tiny_bundle import ALIGNED, BACKBONE, build_tiny_bundle
from training.evaluation.feature_space import BundleFeatures

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = [
    np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for shape in ((130, 70), (64, 200))
]


def test_features_are_the_mean_over_an_images_tiles(tmp_path: Path) -> None:
    """A bundle with an aligned branch gives that branch's, also beside a backbone."""
    bundle = build_tiny_bundle(tmp_path / "bundle", branches=("aligned", "backbone"))
    network = AlignedNet(ALIGNED).eval()
    network.load_state_dict(load_file(bundle.path("aligned.safetensors")))
    with torch.inference_mode():
        expected = [network.features(cut_tiles(one, ALIGNED)).numpy().mean(0) for one in IMAGES]
    features = BundleFeatures(bundle)
    np.testing.assert_allclose(features(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert features.name.startswith("aligned branch of tiny ")


def test_without_an_aligned_branch_they_are_the_backbones(tmp_path: Path) -> None:
    """The shipped bundle has a backbone alone, and retrains all the same."""
    bundle = build_tiny_bundle(tmp_path / "bundle", branches=("backbone",))
    network = Backbone(BACKBONE).eval()
    network.load_state_dict(load_file(bundle.path("backbone.safetensors")))
    views = to_views(np.stack([whole_view(one, BACKBONE) for one in IMAGES]))
    with torch.inference_mode():
        expected = network.features(views).numpy()
    features = BundleFeatures(bundle)
    np.testing.assert_allclose(features(IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert features.name.startswith("backbone branch of tiny ")


def test_a_bundle_with_neither_has_no_feature_space(tmp_path: Path) -> None:
    """The error names the bundle's folder and what it lacks."""
    bundle = build_tiny_bundle(tmp_path / "bundle", branches=("lare",))
    with pytest.raises(BundleError, match=r"bundle has neither an aligned branch nor a backbone"):
        BundleFeatures(bundle)
