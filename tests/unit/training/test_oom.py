"""Forward passes that do not fit the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from detection.networks.branch_configs import LareConfig
from training.data.manifest import Entry
from training.data.samples import Sample
from training.evaluation.scoring import score_tier
from training.fit import lare_task
from training.fit.lare_task import with_maps
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from detection.detector import Detector

    Pixels = NDArray[np.uint8]

ROOM = 3


def entry(path: Path) -> Entry:
    """A photograph."""
    return Entry(path=path, label="real", set="s", family="", group=path.name)


def checked(items: Sequence[Any]) -> Sequence[Any]:
    """Pass on what fits the device's memory."""
    if len(items) > ROOM:
        raise torch.OutOfMemoryError
    return items


def test_halves_come_in_order() -> None:
    """Whatever fits is computed, and each result is at its item's place."""
    assert retry_in_halves(lambda items: [-one for one in checked(items)], range(10)) == [
        -number for number in range(10)
    ]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    """When not even one fits, the error is the device's own."""

    def full(_items: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        retry_in_halves(full, [1, 2])


def test_scoring_halves_its_batches(tmp_path: Path) -> None:
    """An evaluation on a device with little memory ends with every image's own logit."""

    @dataclass(frozen=True)
    class Stated:
        branches: Mapping[str, float]

    class Brightness:
        def score(self, images: Sequence[Pixels]) -> list[Stated]:
            return [Stated({"mean": float(image.mean())}) for image in checked(images)]

    entries = []
    for level in range(8):
        path = tmp_path / f"{level}.png"
        Image.fromarray(np.full((64, 64, 3), 30 * level, np.uint8)).save(path)
        entries.append(entry(path))
    scored = score_tier(cast("Detector", Brightness()), entries, "clean")

    assert scored.logits.branches["mean"] == pytest.approx(30 * np.arange(8), abs=3)


def test_error_maps_are_made_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views that do not fit together get the map of each of them."""

    def means(_generator: object, stacked: torch.Tensor, *_: object) -> torch.Tensor:
        checked(stacked)
        return stacked.mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr(lare_task, "lare_map", means)
    views = [
        (
            Sample(entry(Path(str(level))), np.zeros((64, 64, 3), np.uint8), lossy=False),
            np.full((64, 64, 3), 30 * level, np.uint8),
        )
        for level in range(8)
    ]
    items = list(
        with_maps(views, cast("Any", None), torch.zeros(1), LareConfig(step=1), batch_size=8)
    )

    found = np.array([float(item.error.squeeze()) for item in items])
    assert np.diff(found) == pytest.approx(np.diff(found)[0], rel=0.02)
    assert [str(item.entry.path) for item in items] == [str(level) for level in range(8)]
