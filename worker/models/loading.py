"""The detector of the settings: the bundle that they name, or a registered one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detection.intake.version import threshold_warning

if TYPE_CHECKING:
    from worker.models.registry import ModelsRegistry, ModelVersion
    from worker.scoring.interface import Scorer
    from worker.settings import Scoring, Settings


def load_detector(settings: Scoring) -> Scorer:
    """Load the bundle; torch is imported here and in `released`, nowhere else in the service."""
    from worker.scoring.torch_scorer import TorchScorer

    return TorchScorer.load(settings)


def threshold_warnings(settings: Settings, registry: ModelsRegistry) -> list[str]:
    """Say of every model in force whose thresholds were not measured on files as read here.

    Without a champion it is the settings' own bundle. Raises `LedgerUnavailable`, `BundleError`.
    """
    active = registry.active()
    known = [model for model in (active.champion, active.shadow) if model is not None]
    told = [(f"model {model.name} {model.digest[:12]}", model.threshold_warning) for model in known]
    if active.champion is None:
        from detection.bundle import load_bundle

        bundle = load_bundle(settings.scoring.bundle)
        warning = threshold_warning(bundle.manifest.intake_versions)
        told.append((f"bundle {bundle.manifest.name}", warning))
    return [f"{name}: {warning}" for name, warning in told if warning is not None]


def settings_for_model(settings: Settings, model: ModelVersion) -> Scoring:
    """Download a registered bundle, if it is not in the cache; return the settings that name it."""
    from worker.models.bundle_store import open_bundles

    with open_bundles(settings) as bundles:
        bundle = bundles.fetch(model.uri, model.digest, settings.scoring.cache)
    return settings.scoring.model_copy(update={"bundle": str(bundle.folder)})
