"""A bundle is loaded whole and unchanged, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from detection.bundle import BundleError, load_bundle
from detection.intake.version import INTAKE_VERSION, threshold_warning
from tests.support.bundles.tiny_bundle import build_tiny_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle on disk for the module; tests change copies."""
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may spoil."""
    return shutil.copytree(built, tmp_path / "tiny")


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit bundle.json in place."""
    file = folder / "bundle.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_the_model_version_is_the_digest_of_the_manifest(folder: Path) -> None:
    """sha256 of bundle.json, which in turn lists the sha256 of every other file."""
    bundle = load_bundle(folder)
    assert bundle.model_version == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    for file in (path for path in folder.rglob("*") if path.is_file()):
        if file.name != "bundle.json":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert bundle.manifest.files[file.relative_to(folder).as_posix()] == digest


def test_any_changed_byte_is_noticed(folder: Path) -> None:
    """A flipped bit in any file, configuration or weights, refuses the bundle by that name."""
    for name in load_bundle(folder).manifest.files:
        file = folder / name
        intact = file.read_bytes()
        file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{file.name} has changed"):
            load_bundle(folder)
        file.write_bytes(intact)
    load_bundle(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    """What the manifest lists must be there."""
    (folder / "egre.safetensors").unlink()
    with pytest.raises(BundleError, match=r"egre\.safetensors is missing"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name", ["more.safetensors", "generator/unet/extra.json", "generator/bundle.json"]
)
def test_an_unlisted_file_is_refused(folder: Path, name: str) -> None:
    """Nothing rides along unhashed, not even under the manifest's own name."""
    (folder / name).write_bytes(b"{}")
    with pytest.raises(BundleError, match="is not listed"):
        load_bundle(folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
@pytest.mark.parametrize("listed", [True, False])
def test_pickled_weights_are_refused(folder: Path, suffix: str, *, listed: bool) -> None:
    """Formats that can run code are refused before they are opened, listed or not."""
    file = folder / f"weights{suffix}"
    file.write_bytes(b"\x80\x04.")
    if listed:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        change(folder, lambda content: content["files"].update({file.name: digest}))
    with pytest.raises(BundleError, match="only safetensors"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(schema_version=5), "schema 5.*upgrade"),
        (lambda c: c.update(preprocessing_version=9), "preprocessing 9"),
        (lambda c: c.pop("schema_version"), "no schema_version"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c["lare"].update(surprise=1), "surprise"),
        (lambda c: c["policy"].update(surprise=1), "surprise"),
        (lambda c: c["fusion"].update(temperature=0), "temperature"),
        (lambda c: c.pop("fusion"), "fusion"),
        (lambda c: [p.update(supported=False) for p in c["operating_points"]], "supported"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Newer schemas, other preprocessing, unknown keys and impossible values are named."""
    change(folder, edit)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_bundle_of_the_first_schema_is_float32_and_of_the_first_intake(folder: Path) -> None:
    """A bundle made before these were stated loads, so that one can go back to it."""

    def age(content: dict[str, Any]) -> None:
        content["schema_version"] = 1
        del content["arithmetic"], content["intake_versions"]

    change(folder, age)
    manifest = load_bundle(folder).manifest
    assert (manifest.arithmetic, manifest.intake_versions) == ("float32", (1,))
    change(folder, lambda content: content.update(arithmetic="float16"))
    with pytest.raises(BundleError, match="'float32' or 'bfloat16'"):
        load_bundle(folder)


def test_a_backbone_whose_head_has_no_classes_is_refused(tmp_path: Path) -> None:
    """Its tensors would not fit; the error says which schema it has and what to do."""
    folder = build_tiny_bundle(tmp_path / "old", branches=("backbone",)).folder
    change(folder, lambda content: content.update(schema_version=3))
    with pytest.raises(BundleError, match=r"no classes \(schema 3\): train the bundle again"):
        load_bundle(folder)


def test_thresholds_of_another_intake_are_warned_of() -> None:
    """The words name both versions; a bundle that covers this release's gets none."""
    assert threshold_warning((1, INTAKE_VERSION, 99)) is None
    warning = threshold_warning((98, 99))
    assert warning is not None
    assert f"intake 98, 99 reads them and this release is intake {INTAKE_VERSION}" in warning


def test_the_embedded_bundle_was_measured_on_files_as_this_release_reads_them() -> None:
    """Whoever raises the intake version measures the bundle again before it ships."""
    assert threshold_warning(load_bundle("small").manifest.intake_versions) is None


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    """Broken and foreign JSON end in the same kind of error."""
    (folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_a_folder_without_a_bundle_is_named(tmp_path: Path) -> None:
    """The error says where was looked."""
    with pytest.raises(BundleError, match=f"no bundle at {tmp_path}"):
        load_bundle(tmp_path)
