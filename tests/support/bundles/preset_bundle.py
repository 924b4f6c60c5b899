"""A test fixture: a tiny bundle that names a preset instead of carrying its generator."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from detection.bundle import Bundle, GeneratorReference, sha256_of, write_manifest
from tests.support.bundles.tiny_bundle import build_tiny_bundle

if TYPE_CHECKING:
    from pathlib import Path

REVISION = "0" * 40


def build_preset_bundle(folder: Path, generators: Path, preset: str = "sd15") -> Bundle:
    """Take the generator out of a tiny bundle, to `generators`, and name it as a preset."""
    bundle = build_tiny_bundle(folder)
    shutil.move(folder / "generator", generators / preset)
    files = {
        path.relative_to(generators / preset).as_posix(): sha256_of(path)
        for path in (generators / preset).rglob("*")
        if path.is_file()
    }
    reference = GeneratorReference(preset=preset, revision=REVISION, files=files)
    return write_manifest(folder, bundle.manifest.model_copy(update={"generator": reference}))
