"""Cross-fitting: no head and no threshold of a fold has met what the fold is tested on."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from detection.fusion import LabelPolicy
from training.bundles.cross_fit import (
    SCORED_FORMS,
    FoldResult,
    calibrate,
    cross_fit,
    fold_figures,
    join,
    pooled_figures,
)
from training.bundles.head_branch import HeadBranch, HeadRecipe, class_name, thumbnail_reader
from training.data.folds import make_folds
from training.data.manifest import Entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FAMILIES = ("alpha", "beta", "gamma")
SOURCES = ("lake", "street", "hill")


def image(name: str, label: str, *, set_: str, family: str = "", kind: str = "") -> Entry:
    """Make an entry that is a group of its own; its source is its set."""
    return Entry(
        path=Path(name), label=label, set=set_, family=family, group=name, kind=kind, source=set_
    )


def entries() -> list[Entry]:
    """60 generated images of three families, 180 photographs of three sources, 12 drawings."""
    made = [
        image(f"{name}-{n}", "generated", set_=name, family=name)
        for name in FAMILIES
        for n in range(20)
    ]
    taken = [
        image(f"{name}-{n}", "real", set_=name, kind="photograph")
        for name in SOURCES
        for n in range(60)
    ]
    drawn = [image(f"drawn-{n}", "real", set_=SOURCES[n % 3], kind="drawing") for n in range(12)]
    return made + taken + drawn


class FakeCache:
    """Rows that tell the classes apart, and a record of whom heads were fitted to."""

    def __init__(self) -> None:
        self.asked: list[frozenset[str]] = []
        self.shift: dict[str, float] = {}

    def rows(self, entries: Sequence[Entry], form: str) -> NDArray[np.float32]:
        """Two numbers: the class with noise, and noise; `shift` moves single images."""
        if form == "clean":
            self.asked.append(frozenset(entry.path.name for entry in entries))
        rows = []
        for entry in entries:
            rng = np.random.default_rng(zlib.crc32(entry.path.name.encode()))
            signal = (2.0 if entry.generated else 0.0) + rng.normal()
            rows.append([signal + self.shift.get(entry.path.name, 0.0), rng.normal()])
        return np.array(rows, dtype=np.float32)


def fitted(cache: FakeCache, images: list[Entry]) -> list[FoldResult]:
    """Cross-fit one head on rows of the cache over the folds of the images."""
    branch = HeadBranch("backbone", cache, HeadRecipe(augmented=0))  # type: ignore[arg-type]
    return cross_fit(branch, images, make_folds(images))


def test_every_image_is_tested_once_by_a_head_that_never_met_its_kind() -> None:
    """Over the folds each image is scored once, and its fold's head saw no image of its kind."""
    cache, images = FakeCache(), entries()
    results = fitted(cache, images)
    tested = [entry.path.name for result in results for entry in result.tested.entries]
    assert sorted(tested) == sorted(entry.path.name for entry in images)
    for result in results:
        names = {entry.path.name for entry in result.tested.entries}
        assert any(not names & taught and len(taught) > 100 for taught in cache.asked)
        resting = {entry.path.name for entry in result.calibrated.variants.entries}
        assert not names & resting
        assert len(resting) > 100


def test_a_folds_thresholds_do_not_move_with_what_it_is_tested_on() -> None:
    """Whatever the tested images look like, the fold's points are the same; its rates are not."""
    images = entries()
    folds = make_folds(images)
    plain, moved = FakeCache(), FakeCache()
    out = [entry for entry in images if folds[0].left_out(entry) and entry.photograph]
    moved.shift = {entry.path.name: 6.0 for entry in out}
    before, after = fitted(plain, images)[0], fitted(moved, images)[0]
    assert after.calibrated.points == before.calibrated.points
    policy = LabelPolicy(flag=0.05)
    found = fold_figures(after, policy)["forms"]["web"]["photographs_accused"]
    assert (found["hits"], found["total"]) == (len(out), len(out))
    assert fold_figures(before, policy)["forms"]["web"]["photographs_accused"]["hits"] < 10


def test_pooled_figures_count_every_real_picture_once() -> None:
    """Photographs and other reals are counted over all folds, by form, anywhere, and by kind."""
    images = entries()
    results = fitted(FakeCache(), images)
    pooled = pooled_figures(results, LabelPolicy(flag=0.05))
    for form in SCORED_FORMS:
        assert pooled["forms"][form]["photographs_accused"]["total"] == 180
        assert pooled["forms"][form]["other_reals_accused"]["total"] == 12
    assert pooled["kinds"]["drawing"]["total"] == 12
    worst = pooled["worst_form"]["photographs_accused"]["hits"]
    assert worst == max(part["photographs_accused"]["hits"] for part in pooled["forms"].values())
    released = calibrate(join([result.tested for result in results]))
    assert released.points[-1].reals == 180
    assert released.points[-1].others == 12


def test_classes_are_kinds_and_families() -> None:
    """A generated image is of its family, a real one of its kind; the name says which side."""
    assert class_name(image("a", "generated", set_="s", family="alpha")) == "generated:alpha"
    assert class_name(image("a", "real", set_="s", kind="drawing")) == "real:drawing"
    assert class_name(image("a", "real", set_="s")) == "real:photograph"


def test_sides_weigh_alike_and_other_reals_their_share() -> None:
    """Generated images and photographs count half each; drawings 0.3 of a half, on top."""
    images = entries()
    branch = HeadBranch("backbone", FakeCache(), HeadRecipe())  # type: ignore[arg-type]
    weights = branch.weights(images)
    generated = np.array([one.generated for one in images])
    photographs = np.array([one.photograph for one in images])
    assert len(images) == 252
    assert weights[generated].sum() == pytest.approx(126)
    assert weights[photographs].sum() == pytest.approx(126)
    assert weights[~generated & ~photographs].sum() == pytest.approx(0.3 * 126)


def test_a_thumbnail_keeps_colours_and_loses_traces() -> None:
    """Noise of pixels averages out of a thumbnail; what half of the picture shows stays."""
    picture = np.full((256, 512, 3), 100, dtype=np.uint8)
    picture[:, 256:] = 200
    picture[::2, ::2] += 10
    picture[1::2, 1::2] += 10
    row = thumbnail_reader([picture])[0].reshape(32, 32, 3)
    np.testing.assert_allclose(row[:, :16], 105 / 255, atol=0.005)
    np.testing.assert_allclose(row[:, 16:], 205 / 255, atol=0.005)


def test_the_forms_taught_are_named() -> None:
    """The harmonised image, its web form, and so many draws of the augmentation."""
    recipe = replace(HeadRecipe(), augmented=2)
    assert recipe.forms == ("clean", "web", "augmented-0", "augmented-1")
