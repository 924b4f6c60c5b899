"""The benchmark of additions reads maps as EGRE aligns them, and asks what a second view tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from detection.bundle import BundleError
from tests.benchmarks.detector.bench_additions import (
    ARMS,
    FORMS,
    _weighted,
    build_readers,
    disagreement,
    measure,
    write_page,
)
from tests.support.bundles.tiny_bundle import BACKBONE, build_tiny_bundle
from tests.support.images.labelled_folder import write_folder
from training.bundles.cross_fit import UnseenLogits
from training.data.folds import make_folds
from training.data.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Entry


def test_a_stage_is_averaged_where_the_map_is_high() -> None:
    """The map is averaged down to the stage and weighs its cells; an even one changes nothing."""
    stage = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    error = torch.zeros(1, 1, 4, 4)
    error[..., :2, 2:] = torch.tensor([[1.0, 3.0], [0.0, 0.0]])  # the cell of the 2
    error[..., 2:, :2] = 3.0  # the cell of the 3
    # The cells weigh 1 and 3: (2 + 3 x 3) / 4.
    assert _weighted(stage, error).item() == pytest.approx(2.75)
    assert _weighted(stage, torch.ones(1, 1, 4, 4)).item() == pytest.approx(2.5)


def test_readers_see_the_same_square(tmp_path: Path) -> None:
    """What lies beside the square hardly changes a row, and the crop sees its centre alone."""
    bundle = build_tiny_bundle(tmp_path / "tiny", branches=("backbone", "lare"))
    readers = build_readers(bundle)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (128, 192, 3), dtype=np.uint8)
    beside, around = picture.copy(), picture.copy()
    beside[:, :32] = 0
    around[:16] = 0
    for name, read in readers.items():
        (row,), (same,), (other,) = read([picture]), read([beside]), read([around])
        # The map's view is scaled by a filter that reaches a little beyond the square.
        np.testing.assert_allclose(row, same, rtol=0, atol=1e-3 if "map" in name else 0)
        assert (np.abs(row - other).max() < 1e-3) == (name == "crop")
    widths = {name: len(read([picture])[0]) for name, read in readers.items()}
    # A map adds a mean a channel, and mean and spread of its own four.
    assert widths["map-1"] == widths["map-all"] == widths["features"] // 2 + 8
    assert widths["detail"] == widths["features"] // 2 + 2
    assert not np.array_equal(readers["map-1"]([picture])[0], readers["map-all"]([picture])[0])
    assert BACKBONE.side == 64
    without = build_tiny_bundle(tmp_path / "without", branches=("backbone",))
    with pytest.raises(BundleError, match="no generator to compute error maps with"):
        build_readers(without)


class FakeRows:
    """One number an image: its label, or noise."""

    def __init__(self, *, tells: bool) -> None:
        self._tells = tells

    def rows(self, entries: Sequence[Entry], form: str) -> NDArray[np.float32]:
        """Return the numbers (N, 1)."""
        rng = np.random.default_rng(len(entries) + len(form))
        told = [float(entry.generated) if self._tells else rng.normal() for entry in entries]
        return np.array(told, dtype=np.float32)[:, None]


def test_an_addition_that_tells_gains(tmp_path: Path) -> None:
    """What knows the label has AUC 1 and gains what noise lacks; noise gains nothing surely."""
    sets = ("lake", "street", "hill", "alpha1", "beta", "gamma")
    entries = load_manifest(write_folder(tmp_path / "data", each=4, sets=sets))
    told = {"features": False, "map-1": True, "map-all": False, "detail": False, "crop": False}
    caches = {name: FakeRows(tells=tells) for name, tells in told.items()}
    record = measure(caches, entries, make_folds(entries))  # type: ignore[arg-type]  # rows alone
    alone, one, *_ = record["arms"]
    for form in FORMS:
        assert alone["forms"][form]["gain"] == {"value": 0, "low": 0, "high": 0}
        assert one["forms"][form]["auc"]["value"] == 1
        gain = 1 - alone["forms"][form]["auc"]["value"]
        assert one["forms"][form]["gain"]["value"] == pytest.approx(gain, abs=2e-4)
    record |= {"processor_ms": dict.fromkeys(told, 10.0)}
    table = [line for line in write_page(record, command="make").splitlines() if line[:1] == "|"]
    assert len(table) == 2 + len(ARMS)
    assert [line.split("|")[2].strip() for line in table[2:]] == [
        "10",
        "10",
        "10",
        "10",
        "20",
        "20",
    ]


def test_disagreement_is_looked_for_above_the_point_of_doubt() -> None:
    """Only what lies above 95 % of a fold's photographs counts, by how far the crop lies below."""
    rng = np.random.default_rng(1)
    generated = np.r_[np.zeros(100, bool), np.ones(60, bool)]
    logits = rng.normal(size=160) + generated
    # The crop contradicts the photographs by 1, give or take 1, and the generated images by 0.
    crop = logits - rng.normal(size=160) - ~generated
    groups = np.arange(160).astype(str)
    whole, other = (
        UnseenLogits(logits=one, generated=generated, groups=groups) for one in (logits, crop)
    )
    above = logits > np.sort(logits[:100])[94] + 1e-9
    found = disagreement([whole], [other])
    assert found["photographs"] == above[:100].sum() == 5
    assert found["generated"] == above[100:].sum()
    expected = roc_auc_score(~generated[above], (logits - crop)[above])
    assert found["auc"]["value"] == pytest.approx(expected)
