"""The map of a backbone's logit points at the part of a picture that its head reacts to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from detection.backbone import Backbone, to_views, whole_view
from detection.bundle import load_bundle
from tests.support.images.splices import Splice, paste, pointing_auc
from training.data.shaders import render
from training.fit.softmax_head import fit_head, zero_head
from worker.demo.photographs import PHOTOGRAPHS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

REAL, TEXTURE = "real:photograph", "generated:cells"


def photographs() -> list[NDArray[np.uint8]]:
    """The photographs of the wheels, at most 512 pixels a side."""
    made = []
    for photograph in PHOTOGRAPHS:
        with Image.open(photograph.path) as image:
            image.thumbnail((512, 512))
            made.append(np.array(image.convert("RGB")))
    return made


def features(backbone: Backbone, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """What the backbone reads of whole pictures (N, D)."""
    views = to_views(np.stack([whole_view(one, backbone.config) for one in pictures]))
    with torch.inference_mode():
        return backbone.features(views).numpy()


def reacting(learnt_from: Sequence[NDArray[np.uint8]]) -> Backbone:
    """The shipped backbone with a head that tells one texture from photographs, and no more."""
    bundle = load_bundle("small")
    assert bundle.manifest.backbone is not None
    made = Backbone(replace(bundle.manifest.backbone, real=(REAL,), generated=(TEXTURE,)))
    stored = load_file(bundle.path("backbone.safetensors"))
    weights = {name: value.float() for name, value in stored.items() if "head." not in name}
    made.load_state_dict(made.state_dict() | weights)
    made.eval().requires_grad_(requires_grad=False)
    textures = [render("cells", seed) for seed in range(len(learnt_from))]
    rows = np.concatenate([features(made, learnt_from), features(made, textures)])
    names = np.repeat([REAL, TEXTURE], len(learnt_from))
    start = zero_head((REAL,), (TEXTURE,), rows.shape[1])
    head = fit_head(rows, names, np.ones(len(rows)), strength=1e-2, start=start)
    made.load_state_dict(made.state_dict() | head.state())
    return made


def test_the_map_points_at_the_patch() -> None:
    """In photographs that the head never met, it ranks the patch first: AUC 0.8."""
    pictures = photographs()
    backbone = reacting(pictures[::2])
    areas = []
    for seed, host in enumerate(pictures[1::2]):
        texture = render("cells", 1000 + seed)
        splice = paste(host, texture, np.random.default_rng(seed))
        with torch.inference_mode():
            view = to_views(np.stack([whole_view(splice.pixels, backbone.config)]))
            contributions = backbone(view)[1][0].numpy()
        areas.append(pointing_auc(contributions, splice))
    assert np.mean(areas) >= 0.8


@pytest.mark.parametrize(("shape", "box"), [((90, 60, 3), (15, 0)), ((60, 120, 3), (0, 30))])
def test_a_patch_lies_in_the_centre_square(
    shape: tuple[int, int, int], box: tuple[int, int]
) -> None:
    """The mask is where the pixels are another picture's, a square of 0.4 sides; all else stays."""
    host, donor = np.zeros(shape, dtype=np.uint8), np.full((80, 80, 3), 7, dtype=np.uint8)
    for seed in range(20):
        splice = paste(host, donor, np.random.default_rng(seed))
        np.testing.assert_array_equal(splice.mask, splice.pixels[..., 0] == 7)
        rows, columns = (np.flatnonzero(splice.mask.any(axis)) for axis in (1, 0))
        assert len(rows) == len(columns) == 24
        assert splice.mask.sum() == 24**2
        for places, start in zip((rows, columns), box, strict=True):
            assert start <= places[0] <= places[-1] < start + 60


def test_a_map_of_the_mask_points_and_its_opposite_points_away() -> None:
    """The area is 1 for the mask of whole cells, 0 for its opposite, 0.5 for an even map."""
    mask = np.zeros((80, 120), dtype=bool)
    mask[20:40, 40:60] = True
    splice = Splice(pixels=np.zeros((80, 120, 3), dtype=np.uint8), mask=mask)
    cells = np.zeros((4, 4), dtype=np.float32)
    cells[1, 1] = 1
    assert pointing_auc(cells, splice) == 1
    assert pointing_auc(-cells, splice) == 0
    assert pointing_auc(np.zeros_like(cells), splice) == 0.5
