"""Aligned datasets, training, calibration, evaluation and model bundles.

Public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.bundles.build import build_bundle
    from training.bundles.challenger import ChallengerRecipe
    from training.bundles.recipe import BundleRecipe
    from training.bundles.training_run.run import BundleTrainingRun
    from training.data.aligners import AutoencoderReconstruction
    from training.data.folds import Fold, load_folds
    from training.data.manifest import Entry, load_manifest
    from training.data.samples import check_images
    from training.evaluation.promotion_gate import GateDecision, GateLimits
    from training.evaluation.quality.run import evaluate_bundle
    from training.evaluation.shortcut_audit import AlignmentReport, AuditLimits, run_audit
    from training.evaluation.shortcut_features import source_files
    from training.retraining.folder_run import FolderRunOptions, FolderRunResult, run_on_folder

_MODULES = {
    "AlignmentReport": "training.evaluation.shortcut_audit",
    "AuditLimits": "training.evaluation.shortcut_audit",
    "AutoencoderReconstruction": "training.data.aligners",
    "BundleRecipe": "training.bundles.recipe",
    "BundleTrainingRun": "training.bundles.training_run.run",
    "ChallengerRecipe": "training.bundles.challenger",
    "Entry": "training.data.manifest",
    "Fold": "training.data.folds",
    "FolderRunOptions": "training.retraining.folder_run",
    "FolderRunResult": "training.retraining.folder_run",
    "GateDecision": "training.evaluation.promotion_gate",
    "GateLimits": "training.evaluation.promotion_gate",
    "build_bundle": "training.bundles.build",
    "check_images": "training.data.samples",
    "evaluate_bundle": "training.evaluation.quality.run",
    "load_folds": "training.data.folds",
    "load_manifest": "training.data.manifest",
    "run_audit": "training.evaluation.shortcut_audit",
    "run_on_folder": "training.retraining.folder_run",
    "source_files": "training.evaluation.shortcut_features",
}

__all__ = [
    "AlignmentReport",
    "AuditLimits",
    "AutoencoderReconstruction",
    "BundleRecipe",
    "BundleTrainingRun",
    "ChallengerRecipe",
    "Entry",
    "Fold",
    "FolderRunOptions",
    "FolderRunResult",
    "GateDecision",
    "GateLimits",
    "build_bundle",
    "check_images",
    "evaluate_bundle",
    "load_folds",
    "load_manifest",
    "run_audit",
    "run_on_folder",
    "source_files",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
