"""Cross-fitting: no head and no threshold of a fold has met what the fold is tested on."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection.fusion import LabelPolicy
from training.bundles.cross_fit import (
    SCORED_FORMS,
    CrossFit,
    HeadRecipe,
    fold_figures,
    join,
    pooled_figures,
)
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
    """Features that tell the classes apart, and a record of whom heads were fitted to."""

    def __init__(self) -> None:
        self.asked: list[frozenset[str]] = []
        self.shift: dict[str, float] = {}

    def features(self, entries: Sequence[Entry], form: str) -> NDArray[np.float32]:
        """Two features: the class with noise, and noise; `shift` moves single images."""
        if form == "clean":
            self.asked.append(frozenset(entry.path.name for entry in entries))
        rows = []
        for entry in entries:
            rng = np.random.default_rng(zlib.crc32(entry.path.name.encode()))
            signal = (2.0 if entry.generated else 0.0) + rng.normal()
            rows.append([signal + self.shift.get(entry.path.name, 0.0), rng.normal()])
        return np.array(rows, dtype=np.float32)


def test_every_image_is_tested_once_by_a_head_that_never_met_its_kind() -> None:
    """Over the folds each image is scored once, and its fold's head saw no image of its kind."""
    cache, images = FakeCache(), entries()
    folds = make_folds(images)
    results = CrossFit(cache, images, [], HeadRecipe(augmented=0)).folds(folds)  # type: ignore[arg-type]
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
    recipe = HeadRecipe(augmented=0)
    before = CrossFit(plain, images, [], recipe).folds(folds)[0]  # type: ignore[arg-type]
    after = CrossFit(moved, images, [], recipe).folds(folds)[0]  # type: ignore[arg-type]
    assert after.calibrated.points == before.calibrated.points
    policy = LabelPolicy(flag=0.05)
    found = fold_figures(after, policy)["forms"]["web"]["photographs_accused"]
    assert (found["hits"], found["total"]) == (len(out), len(out))
    assert fold_figures(before, policy)["forms"]["web"]["photographs_accused"]["hits"] < 10


def test_pooled_figures_count_every_real_picture_once() -> None:
    """Photographs and other reals are counted over all folds, by form, anywhere, and by kind."""
    images = entries()
    fit = CrossFit(FakeCache(), images, [], HeadRecipe(augmented=0))  # type: ignore[arg-type]
    results = fit.folds(make_folds(images))
    pooled = pooled_figures(results, LabelPolicy(flag=0.05))
    for form in SCORED_FORMS:
        assert pooled["forms"][form]["photographs_accused"]["total"] == 180
        assert pooled["forms"][form]["other_reals_accused"]["total"] == 12
    assert pooled["kinds"]["drawing"]["total"] == 12
    worst = pooled["worst_form"]["photographs_accused"]["hits"]
    assert worst == max(part["photographs_accused"]["hits"] for part in pooled["forms"].values())
    released = fit.calibrate(join([result.tested for result in results]))
    assert released.points[-1].reals == 180
    assert released.points[-1].others == 12


def test_own_images_are_taught_in_every_fold_and_never_tested() -> None:
    """Images of the bundle's own generator stand in every head's training and in no figure."""
    cache, images = FakeCache(), entries()
    own = [image(f"own-{n}", "generated", set_="sampled", family="embedded") for n in range(4)]
    results = CrossFit(cache, images, own, HeadRecipe(augmented=0)).folds(make_folds(images))  # type: ignore[arg-type]
    names = {entry.path.name for entry in own}
    taught = [one for one in cache.asked if len(one & names)]
    assert len(taught) == 3 + 3
    assert all(names <= one for one in taught)
    assert not any(
        entry.path.name in names for result in results for entry in result.tested.entries
    )


def test_the_forms_taught_are_named() -> None:
    """The harmonised image, its web form, and so many draws of the augmentation."""
    recipe = replace(HeadRecipe(), augmented=2)
    assert recipe.forms == ("clean", "web", "augmented-0", "augmented-1")
