"""The unusual shapes are what their names say, and every picture in them gets a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detection.detector import Detector
from detection.score import Label
from tests.benchmarks.bench_quality import shapes_page
from tests.benchmarks.detector.shapes import (
    LARGE,
    SHAPES,
    count_labels,
    panorama,
    tall_screenshot,
    thumbnail,
)
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from worker.demo.photographs import PHOTOGRAPHS

if TYPE_CHECKING:
    from pathlib import Path


def test_shapes_have_their_sizes_and_show_the_picture() -> None:
    """A thumbnail keeps the ratio, a panorama mirrors, a screenshot holds the picture."""
    picture = np.zeros((300, 600, 3), dtype=np.uint8)
    picture[:, 300:] = 200
    assert thumbnail(picture).shape == (100, 200, 3)
    wide = panorama(picture)
    assert wide.shape == (720, 2880, 3)
    assert [int(wide[360, x, 0]) for x in (100, 1000, 1800, 2800)] == [0, 200, 200, 0]
    tall = tall_screenshot(picture)
    assert tall.shape == (2160, 540, 3)
    assert [int(tall[1080, x, 0]) for x in (5, 100, 400)] == [255, 0, 200]


def test_every_photograph_is_counted_in_every_shape(tmp_path: Path) -> None:
    """Labels of a shape add up to the photographs, those of large ones to fewer."""
    detector = Detector(build_tiny_bundle(tmp_path / "tiny", branches=("backbone",)))
    counted = count_labels(detector)
    totals = {name: sum(labels.values()) for name, labels in counted.items()}
    large = totals.pop(f"as it is, {LARGE} pixels and more")
    assert 0 < large < len(PHOTOGRAPHS)
    assert totals == dict.fromkeys(SHAPES, len(PHOTOGRAPHS))
    assert all(labels.keys() == {label.value for label in Label} for labels in counted.values())
    assert len(shapes_page(counted).splitlines()) == 4 + len(counted)
