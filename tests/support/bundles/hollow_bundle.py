"""A test fixture: bundles without weights, for what only asks who they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detection.bundle import (
    PREPROCESSING_VERSION,
    SCHEMA_VERSION,
    Bundle,
    BundleManifest,
    BundleProvenance,
    write_manifest,
)
from detection.fusion import Fusion, LabelPolicy, OperatingPoint
from detection.intake.version import INTAKE_VERSION

if TYPE_CHECKING:
    from pathlib import Path


def build_hollow_bundle(
    folder: Path, name: str, *, intake_versions: tuple[int, ...] = (INTAKE_VERSION,)
) -> Bundle:
    """Write a bundle that is nothing but its manifest; another name is another version."""
    folder.mkdir(parents=True)
    point = OperatingPoint(
        target=0.01,
        threshold=2.0,
        measured=0.01,
        low=0.005,
        high=0.02,
        reals=500,
        recall=0.5,
        supported=True,
        needs_reals=None,
    )
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        preprocessing_version=PREPROCESSING_VERSION,
        intake_versions=intake_versions,
        generator=None,
        lare=None,
        egre=None,
        aligned=None,
        fusion=Fusion(weights={}, centres={}, bias=0.0),
        operating_points=(point,),
        policy=LabelPolicy(),
        metrics={},
        provenance=BundleProvenance(
            snapshot_digest="0" * 64,
            code_revision="test",
            recipe="none",
            seen_families=(),
            data_licence="none: no data",
        ),
        files={},
    )
    return write_manifest(folder, manifest)
