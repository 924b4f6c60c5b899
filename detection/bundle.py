"""A bundle: a released detector as a folder of `bundle.json`, safetensors and a card.

`bundle.json` names every file with its sha256; the sha256 of `bundle.json` itself is the model
version that verdicts carry, so that a changed byte anywhere is another version. Loading checks
every hash and refuses anything that is not safetensors, JSON or text.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from detection.errors import SettingsError
from detection.fusion import Fusion, LabelPolicy, OperatingPoint
from detection.networks.branch_configs import (
    AlignedConfig,  # pydantic resolves it at run time
    BackboneConfig,  # pydantic resolves it at run time
    EgreConfig,  # pydantic resolves it at run time
    LareConfig,  # pydantic resolves it at run time
)

#: 2 added `intake_versions` and `arithmetic`, 3 added `backbone` and what points say of other real
#: pictures, 4 the classes of a backbone's head. Bundles of earlier schemas load with defaults, but
#: for a backbone of schema 3, whose head had no classes.
SCHEMA_VERSION: Final = 4
#: Raised with every change of how pixels become views and tiles that could move a score. How bytes
#: become pixels has a version of its own, `detection.intake.version`.
PREPROCESSING_VERSION: Final = 1
#: Of the forward passes; weights stay float32 and are cast where the device gains by it.
Arithmetic = Literal["float32", "bfloat16"]
BUNDLE_FILE: Final = "bundle.json"
SUFFIXES: Final = frozenset({".safetensors", ".json", ".md", ".txt"})


class BundleError(SettingsError):
    """The bundle cannot be used."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GeneratorReference(_Record):
    """Where the generator comes from: a folder of the bundle, or a preset at a revision.

    A preset's weights are not in the bundle: `files` holds the sha256 of each file that was used,
    by its path in the generator's folder, and `variant` the weight files' variant ("fp16").
    """

    folder: str | None = None
    preset: str | None = None
    revision: str | None = None
    variant: str | None = None
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.folder is None) == (self.preset is None):
            raise ValueError("a generator is either a folder of the bundle or a preset")
        if self.preset is not None and not (self.revision and self.files):
            raise ValueError("a preset is named with its revision and its files' sha256")
        return self


class BundleProvenance(_Record):
    """The data, code and recipe that the bundle was made from."""

    snapshot_digest: str
    code_revision: str
    recipe: str
    seen_families: tuple[str, ...]
    data_licence: str


class BundleManifest(_Record):
    """The content of `bundle.json`.

    The thresholds hold for pixels that one of the `intake_versions` read from a file.
    """

    schema_version: int
    name: str
    preprocessing_version: int
    intake_versions: tuple[int, ...] = (1,)
    arithmetic: Arithmetic = "float32"
    generator: GeneratorReference | None
    lare: LareConfig | None
    egre: EgreConfig | None
    aligned: AlignedConfig | None
    backbone: BackboneConfig | None = None
    fusion: Fusion
    operating_points: tuple[OperatingPoint, ...]
    policy: LabelPolicy
    metrics: dict[str, Any]
    provenance: BundleProvenance
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: BundleManifest
    model_version: str

    def path(self, name: str) -> Path:
        """Return the path of one of the bundle's files."""
        return self.folder / name


def embedded_folder(name: str) -> Path:
    """Return where the package keeps the bundle called `name` (it may not exist)."""
    return Path(str(files("detection") / "bundles" / name))


def embedded_names() -> list[str]:
    """List the bundles that ship in the package."""
    root = embedded_folder("")
    return sorted(path.parent.name for path in root.glob(f"*/{BUNDLE_FILE}"))


def load_bundle(name_or_folder: str | Path) -> Bundle:
    """Open and verify a bundle: an embedded one by its name, else a folder.

    Raises `BundleError` for a missing or unlisted file, a changed byte, a newer schema, another
    preprocessing version, or weights in a format that can run code.
    """
    folder = Path(name_or_folder)
    if not (folder / BUNDLE_FILE).is_file() and str(name_or_folder) in embedded_names():
        folder = embedded_folder(str(name_or_folder))
    file = folder / BUNDLE_FILE
    if not file.is_file():
        known = ", ".join(embedded_names()) or "none"
        raise BundleError(
            f"no bundle at {folder}: no {BUNDLE_FILE} there (embedded bundles: {known})"
        )
    raw = file.read_bytes()
    manifest = _parse(file, raw)
    _verify(folder, manifest)
    return Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())


def _parse(file: Path, raw: bytes) -> BundleManifest:
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{file} is not JSON: {error}") from error
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{file} states no schema_version")
    if schema > SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema {schema}, this release reads up to {SCHEMA_VERSION}:"
            " upgrade unlatent"
        )
    try:
        manifest = BundleManifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{file} is not a valid bundle: {error}") from error
    if manifest.preprocessing_version != PREPROCESSING_VERSION:
        raise BundleError(
            f"{file} was calibrated on preprocessing {manifest.preprocessing_version}, this release"
            f" does {PREPROCESSING_VERSION}: its scores would not be comparable"
        )
    if manifest.backbone is not None and manifest.schema_version < 4:
        raise BundleError(
            f"{file} has a backbone whose head has no classes (schema {manifest.schema_version}):"
            " train the bundle again with this release"
        )
    if not any(point.supported for point in manifest.operating_points):
        raise BundleError(f"{file} has no operating point supported by enough photographs")
    return manifest


def _verify(folder: Path, manifest: BundleManifest) -> None:
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / BUNDLE_FILE
    }
    for name in sorted(present | manifest.files.keys()):
        if Path(name).suffix not in SUFFIXES:
            raise BundleError(
                f"{folder / name}: only safetensors weights are loaded, never pickles"
            )
        if name not in manifest.files:
            raise BundleError(f"{folder / name} is not listed in {BUNDLE_FILE}")
        if name not in present:
            raise BundleError(f"{folder / name} is missing: {BUNDLE_FILE} lists it")
        if sha256_of(folder / name) != manifest.files[name]:
            raise BundleError(f"{folder / name} has changed: its sha256 is not the one listed")


def sha256_of(file: Path) -> str:
    """Return the hex sha256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: BundleManifest) -> Bundle:
    """Write `bundle.json` for the files in `folder`, hashing each, and load the result."""
    hashes = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / BUNDLE_FILE
    }
    listed = manifest.model_copy(update={"files": hashes})
    text = json.dumps(listed.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    (folder / BUNDLE_FILE).write_text(text, encoding="utf-8")
    return load_bundle(folder)
