"""Builds the stages of a run and their dependencies from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.bundles.challenger import ChallengerRecipe
from training.data.alignment import AlignmentConfig, batch_for
from training.data.bundle_aligner import bundle_aligner
from training.evaluation.feature_space import BundleFeatures
from training.evaluation.promotion_gate import GateLimits
from training.evaluation.shortcut_audit import AuditLimits
from worker.models.bundle_store import BundleStore
from worker.models.registry import ModelsRegistry
from worker.retraining.bundle_access import BundleAccess
from worker.retraining.candidates import collect_policy
from worker.retraining.challenger_stages import ChallengerContext, challenger_stages
from worker.retraining.dataset_stages import AlignmentModels, DatasetContext, dataset_stages
from worker.scoring.torch_scorer import choose_device

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.retraining.stage_runner import Stage
    from worker.settings import Settings
    from worker.storage.interface import Storage


def all_stages(settings: Settings, engine: Engine, storage: Storage) -> list[Stage]:
    """Return every stage of a run, in order."""
    bundle_access = BundleAccess(
        registry=ModelsRegistry(engine),
        bundles=BundleStore(storage, settings.training.bucket),
        default=settings.scoring.bundle,
        cache=settings.scoring.cache,
    )
    dataset = dataset_context(settings, engine, storage, bundle_access)
    return [
        *dataset_stages(dataset),
        *challenger_stages(challenger_context(settings, dataset, bundle_access)),
    ]


def dataset_context(
    settings: Settings, engine: Engine, storage: Storage, bundle_access: BundleAccess
) -> DatasetContext:
    """Build the dependencies of the data set's stages."""
    training = settings.training
    device = choose_device(settings.scoring.device)
    return DatasetContext(
        engine=engine,
        storage=storage,
        bucket=training.bucket,
        policy=collect_policy(training),
        max_bytes=settings.intake.max_bytes,
        load_models=lambda: load_alignment_models(bundle_access.current(), device),
        alignment=AlignmentConfig(
            shard_images=training.shard_images,
            batch_size=training.batch_size or batch_for(device),
        ),
        limits=AuditLimits(
            probe_auc=training.max_probe_auc,
            sharpness_auc=training.max_sharpness_auc,
            shift_px=training.max_shift_px,
            tone_levels=training.max_tone_levels,
        ),
        shaders=training.shaders,
    )


def challenger_context(
    settings: Settings, dataset: DatasetContext, bundle_access: BundleAccess
) -> ChallengerContext:
    """Build the dependencies of the challenger's stages."""
    training = settings.training
    return ChallengerContext(
        dataset_context=dataset,
        bundle_access=bundle_access,
        work_dir=training.work_dir,
        device=choose_device(settings.scoring.device),
        recipe=ChallengerRecipe().at_most(training.steps),
        limits=GateLimits(),
    )


def load_alignment_models(champion: Bundle, device: str) -> AlignmentModels:
    """Load the aligner and the feature space of the champion."""
    features = BundleFeatures(champion, device=device)
    aligner = bundle_aligner(champion, device=device)
    return AlignmentModels(aligners=[aligner], features=features, space=features.name)
