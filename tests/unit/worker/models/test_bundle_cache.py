"""Local copies of bundles: what is in use or within reach stays, the rest goes after a while."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from worker.models.bundle_cache import IDLE_S, prune

if TYPE_CHECKING:
    from pathlib import Path

CHAMPION, BEFORE, SHADOW, GONE, YOUNG = (digit * 64 for digit in "abcde")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Copies of five bundles, all but one of the day before yesterday."""
    for name in (CHAMPION, BEFORE, SHADOW, GONE, YOUNG):
        put(tmp_path, name, age_s=0 if name == YOUNG else 2 * IDLE_S)
    return tmp_path


def put(cache: Path, name: str, *, age_s: float) -> Path:
    """Lay a folder with a file into the cache as if it were so old."""
    folder = cache / name
    (folder / "generator").mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    then = time.time() - age_s
    os.utime(folder, (then, then))
    return folder


def test_only_what_nobody_asks_for_goes(cache: Path) -> None:
    """Kept digests stay whatever their age, and a young copy may be another process's."""
    assert prune(cache, {CHAMPION, BEFORE, SHADOW}) == [GONE]
    assert {path.name for path in cache.iterdir()} == {CHAMPION, BEFORE, SHADOW, YOUNG}
    assert prune(cache, {CHAMPION, BEFORE, SHADOW}) == []


def test_what_a_kill_left_goes_too(cache: Path) -> None:
    """Old halves of downloads and removals go, young ones are somebody's at this moment."""
    for name in (".download-old", ".removed-old"):
        put(cache, name, age_s=2 * IDLE_S)
    put(cache, ".download-now", age_s=0)
    prune(cache, {CHAMPION, BEFORE, SHADOW, GONE})
    assert {path.name for path in cache.iterdir() if path.name.startswith(".")} == {".download-now"}


def test_nothing_else_is_touched(cache: Path) -> None:
    """A cache that somebody pointed at a folder of theirs costs them nothing."""
    put(cache, "holiday", age_s=2 * IDLE_S)
    (cache / "notes.txt").write_text("mine")
    prune(cache, set(), idle_s=-1)
    assert {path.name for path in cache.iterdir()} == {"holiday", "notes.txt"}


def test_without_a_cache_there_is_nothing_to_do(tmp_path: Path) -> None:
    """Before the first download the folder does not exist."""
    assert prune(tmp_path / "none", set()) == []


def test_a_copy_that_cannot_be_removed_stops_nobody(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker was faster, or the disk says no: the others go all the same."""
    put(cache, "f" * 64, age_s=2 * IDLE_S)

    def refuse(folder: Path) -> None:
        if (folder / "bundle.json").read_text() == "stuck":
            raise OSError("no")

    (cache / GONE / "bundle.json").write_text("stuck")
    monkeypatch.setattr("worker.models.bundle_cache.shutil.rmtree", refuse)
    assert prune(cache, {CHAMPION, BEFORE, SHADOW}) == ["f" * 64]
