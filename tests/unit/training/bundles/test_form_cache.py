"""What networks said of images: what is computed once or again, and what a form is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.backbone import Backbone, to_views, whole_view
from tests.support.bundles.tiny_bundle import BACKBONE
from training.bundles.form_cache import FormCache
from training.bundles.head_branch import feature_reader
from training.data.augmentation import AugmentationConfig
from training.data.manifest import Entry
from training.evaluation.robustness_tiers import web
from training.evaluation.scoring import harmonised

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A backbone of random weights."""
    import torch

    torch.manual_seed(9)
    return Backbone(BACKBONE).eval().requires_grad_(requires_grad=False)


def listed(folder: Path, count: int) -> list[Entry]:
    """Write random PNG pictures and list them, real and generated in turn."""
    entries = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        label = "generated" if number % 2 else "real"
        entries.append(Entry(path=file, label=label, set="s", family="", group=str(number)))
    return entries


def test_features_are_those_of_the_form(tmp_path: Path, backbone: Backbone) -> None:
    """A row is what the backbone says of the view of that form of that picture."""
    entries = listed(tmp_path, 3)
    cache = FormCache(tmp_path / "cache", feature_reader(backbone), AugmentationConfig())
    found = cache.rows(entries, "web")
    for row, entry in zip(found, entries, strict=True):
        views = np.stack([whole_view(web(harmonised(entry)), BACKBONE)])
        expected = backbone.features(to_views(views)).numpy()[0]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_a_second_run_computes_only_what_is_new(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier run kept is read in any order; a new picture is computed and kept."""
    entries = listed(tmp_path, 5)
    first = FormCache(tmp_path / "cache", feature_reader(backbone), AugmentationConfig())
    known = first.rows(entries[:4], "augmented-1")
    computed: list[int] = []
    plain = backbone.features

    def counted(views: object) -> object:
        computed.append(len(views))  # type: ignore[arg-type]
        return plain(views)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "features", counted)
    second = FormCache(tmp_path / "cache", feature_reader(backbone), AugmentationConfig())
    again = second.rows([entries[2], entries[4], entries[0]], "augmented-1")
    np.testing.assert_array_equal(again[[0, 2]], known[[2, 0]])
    assert sum(computed) == 1


def test_draws_of_the_augmentation_differ_and_repeat(tmp_path: Path, backbone: Backbone) -> None:
    """Another number is another draw; the same number is the same draw in another folder."""
    entries = listed(tmp_path, 2)
    one, two = (
        FormCache(tmp_path / name, feature_reader(backbone), AugmentationConfig())
        for name in ("a", "b")
    )
    drawn = one.rows(entries, "augmented-0")
    np.testing.assert_array_equal(two.rows(entries, "augmented-0"), drawn)
    assert np.abs(one.rows(entries, "augmented-1") - drawn).max() > 1e-3
