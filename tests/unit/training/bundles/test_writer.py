"""Bundles are written where nothing else is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from detection.bundle import load_bundle
from detection.errors import SettingsError
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from training.bundles.writer import derive_bundle

if TYPE_CHECKING:
    from pathlib import Path


def test_a_bundle_takes_the_place_of_another_one(tmp_path: Path) -> None:
    """What an earlier bundle had, whole or half written, goes."""
    champion = build_tiny_bundle(tmp_path / "champion", branches=("aligned",))
    out = tmp_path / "out"
    out.mkdir()
    (out / "egre.safetensors").touch()
    made = derive_bundle(out, champion, {}, card="new", name="challenger")
    assert load_bundle(out).model_version == made.model_version
    assert {file.name for file in out.iterdir()} == {*made.manifest.files, "bundle.json"}


@pytest.mark.parametrize("kept", ["photo.jpg", "run"])
def test_other_files_are_kept(tmp_path: Path, kept: str) -> None:
    """A folder that holds anything else is named, and everything stays in it."""
    champion = build_tiny_bundle(tmp_path / "champion", branches=("aligned",))
    out = tmp_path / "out"
    (out / kept).mkdir(parents=True)
    with pytest.raises(SettingsError, match=f"out holds {kept}, which is of no bundle"):
        derive_bundle(out, champion, {}, card="new")
    assert (out / kept).is_dir()


def test_a_champion_is_not_replaced_by_its_challenger(tmp_path: Path) -> None:
    """Where the champion lies, no challenger of it is written."""
    champion = build_tiny_bundle(tmp_path / "champion", branches=("aligned",))
    with pytest.raises(SettingsError, match="lies where the bundle is written"):
        derive_bundle(champion.folder, champion, {}, card="new")
    assert load_bundle(champion.folder).model_version == champion.model_version
