"""What the demo makes of the photographs with a bundle's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.errors import SettingsError
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from worker.demo import uploads
from worker.demo.photographs import PHOTOGRAPHS
from worker.demo.uploads import Kind, remade

if TYPE_CHECKING:
    from pathlib import Path


def test_photographs_are_remade_in_two_ways_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps its shape, at most so large, and is another picture."""
    monkeypatch.setattr(uploads, "LONGEST_SIDE", 64)
    bundle = build_tiny_bundle(tmp_path / "bundle")
    made = list(remade(bundle, tmp_path / "images"))
    for number, (one, photograph) in enumerate(zip(made, PHOTOGRAPHS, strict=True)):
        what = ("reconstruction", "variant")[number % 2]
        assert one.says == f"{what} of {photograph.says}"
    assert [one.kind for one in made[:3]] == [
        Kind.RECONSTRUCTION,
        Kind.VARIANT,
        Kind.RECONSTRUCTION,
    ]
    assert len({one.key for one in made}) == len(made)
    for one, photograph in zip(made, PHOTOGRAPHS, strict=True):
        with Image.open(one.path) as image, Image.open(photograph.path) as original:
            original.thumbnail((64, 64))
            assert image.size == original.size
            pixels = np.asarray(original.convert("RGB"))
            assert not np.array_equal(np.asarray(image), pixels)


def test_a_bundle_without_a_generator_remakes_nothing(tmp_path: Path) -> None:
    """The error names the bundle."""
    bundle = build_tiny_bundle(tmp_path / "bundle", branches=("aligned",))
    with pytest.raises(SettingsError, match="bundle tiny holds no generator"):
        next(remade(bundle, tmp_path / "images"))
