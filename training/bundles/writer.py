"""Writing bundles: networks, constants and figures into a folder that the detector loads."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from detection.bundle import (
    PREPROCESSING_VERSION,
    SCHEMA_VERSION,
    SUFFIXES,
    Bundle,
    BundleManifest,
    BundleProvenance,
    GeneratorReference,
    write_manifest,
)
from detection.detector import Detector
from detection.errors import SettingsError
from detection.fusion import Fusion, LabelPolicy, OperatingPoint
from detection.intake.version import INTAKE_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from training.bundles.training_run.run import BundleTrainingRun

#: The branch that each network decides for, by the name of the network's file.
BRANCHES = {"aligned": "aligned", "backbone": "backbone", "egre": "lare"}
#: Of a bundle that is only trained, not calibrated: its logits are read, its labels never.
DRAFT_POINT = OperatingPoint(
    target=0.5, threshold=0.0, measured=0.5, low=0.0, high=1.0, reals=0, recall=0.0, supported=True
)
DRAFT_PROVENANCE = BundleProvenance(
    snapshot_digest="", code_revision="", recipe="", seen_families=(), data_licence=""
)


def draft_fusion(branches: Iterable[str]) -> Fusion:
    """Return the plain sum of branches, for a bundle that is not calibrated yet."""
    names = tuple(branches)
    return Fusion(weights=dict.fromkeys(names, 1.0), centres=dict.fromkeys(names, 0.0), bias=0.0)


def write_bundle(
    folder: Path,
    training_run: BundleTrainingRun,
    networks: Mapping[str, nn.Module],
    *,
    fusion: Fusion | None = None,
    points: tuple[OperatingPoint, ...] = (DRAFT_POINT,),
    policy: LabelPolicy | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: BundleProvenance = DRAFT_PROVENANCE,
    texts: Mapping[str, str] | None = None,
) -> Bundle:
    """Write a bundle, replacing one in `folder`, and load it back.

    `networks` are the classifiers by the name of their file: `egre`, `aligned`, `backbone`. Weights
    are stored in half precision and computed with in float32; without `fusion` it is a draft;
    `texts` are the card and the licence by file name.
    """
    recipe = training_run.recipe
    _clear(folder, training_run.run_dir)
    reference = _place_generator(folder, training_run)
    for name, network in networks.items():
        save_file(to_float16(network.state_dict()), folder / f"{name}.safetensors")
    constants = {
        f"conditioning.{name}": value.contiguous()
        for name, value in training_run.conditioning().items()
    }
    constants["noise_bank"] = training_run.noises()
    save_file(constants, folder / "constants.safetensors")
    for name, text in (texts or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        preprocessing_version=PREPROCESSING_VERSION,
        intake_versions=(INTAKE_VERSION,),
        generator=reference,
        lare=recipe.lare,
        egre=recipe.egre if "egre" in networks else None,
        aligned=recipe.aligned if "aligned" in networks else None,
        backbone=networks["backbone"].config if "backbone" in networks else None,
        fusion=fusion or draft_fusion(BRANCHES[name] for name in sorted(networks)),
        operating_points=points,
        policy=policy or LabelPolicy(),
        metrics=dict(metrics or {}),
        provenance=provenance,
        files={},
    )
    return _with_golden(folder, manifest, generators=training_run.generators)


def _place_generator(folder: Path, training_run: BundleTrainingRun) -> GeneratorReference:
    """Copy a generator of our own into the bundle's folder; a preset is named instead."""
    if training_run.preset is not None:
        folder.mkdir(parents=True)
        return training_run.preset.reference()
    shutil.copytree(training_run.run_dir / "generator", folder / "generator")
    for file in (folder / "generator").rglob("*.safetensors"):
        # diffusers refuses weights whose metadata does not name their framework.
        save_file(to_float16(load_file(file)), file, metadata={"format": "pt"})
    return GeneratorReference(folder="generator")


def require_replaceable(folder: Path, needed: Path) -> None:
    """Raise `SettingsError` where a folder holds anything but a bundle, or `needed`.

    A bundle may be half written. Whoever computes for hours asks before, too.
    """
    if needed.resolve().is_relative_to(folder.resolve()):
        raise SettingsError(f"{needed} lies where the bundle is written: name another --out")
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name != "generator" and entry.suffix not in SUFFIXES:
            raise SettingsError(
                f"{folder} holds {entry.name}, which is of no bundle: name another --out"
            )


def _clear(folder: Path, needed: Path) -> None:
    """Remove the bundle in a folder to make room for another one, as `require_replaceable` says."""
    require_replaceable(folder, needed)
    shutil.rmtree(folder, ignore_errors=True)


def derive_bundle(
    folder: Path,
    champion: Bundle,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    card: str,
    generators: Path | None = None,
    **changes: Any,  # fields of the manifest
) -> Bundle:
    """Write a bundle that is the champion but for some files of weights and manifest fields.

    Its thresholds are measured anew, on files as this release reads them.
    A bundle in `folder` is replaced; weights are stored as `write_bundle` stores them. Raises
    `SettingsError` where the folder holds anything else, or the champion.
    """
    _clear(folder, champion.folder)
    shutil.copytree(champion.folder, folder)
    for name, tensors in weights.items():
        save_file(to_float16(tensors), folder / name)
    (folder / "card.md").write_text(card, encoding="utf-8")
    changes |= {"schema_version": SCHEMA_VERSION, "intake_versions": (INTAKE_VERSION,)}
    manifest = champion.manifest.model_copy(update=changes)
    return _with_golden(folder, manifest, generators=generators)


def _with_golden(
    folder: Path, manifest: BundleManifest, *, generators: Path | None = None
) -> Bundle:
    """Write the manifest, score the golden image with what it describes, and keep the logits.

    Every file may be read by anybody, as a worker without rights must; safetensors leaves its own
    to the writer alone.
    """
    bundle = write_manifest(folder, manifest)
    image = golden_image()
    logits = Detector(bundle, generators=generators).score([image])[0].branches
    golden = {f"logit.{name}": torch.tensor(value) for name, value in logits.items()}
    save_file({"image": torch.from_numpy(image), **golden}, folder / "golden.safetensors")
    bundle = write_manifest(folder, manifest)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    return bundle


def to_float16(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store matrices and kernels in float16; vectors and running statistics as they are."""
    return {
        name: (value.half() if value.is_floating_point() and value.ndim > 1 else value)
        .detach()
        .cpu()
        .contiguous()
        for name, value in weights.items()
    }


def golden_image() -> NDArray[np.uint8]:
    """Draw the image that every worker scores before it serves: uint8 (288, 352, 3), procedural."""
    y, x = np.mgrid[0:288, 0:352].astype(np.float64)
    waves = [np.sin(x / (7 + 3 * k) + k) * np.cos(y / (11 + 2 * k)) for k in range(3)]
    grain = np.random.default_rng(2024).normal(0, 6, (288, 352, 3))
    colour = 128 + 80 * np.stack(waves, axis=-1) + 30 * np.hypot(x - 176, y - 144)[..., None] / 230
    image: NDArray[np.uint8] = np.clip(colour + grain, 0, 255).astype(np.uint8)
    return image
