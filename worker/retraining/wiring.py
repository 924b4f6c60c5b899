"""The stages of a run with everything they work on, put together from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from training.bundles.challenger import ChallengerRecipe
from training.data.alignment import AlignmentConfig, batch_for
from training.data.bundle_aligner import bundle_round_trip
from training.evaluation.features import BundleFeatures
from training.evaluation.promotion_gate import GateLimits
from training.evaluation.shortcut_audit import Limits
from worker.models.bundle_store import BundleStore
from worker.models.registry import ModelsRegistry
from worker.retraining.bundle_access import Champions
from worker.retraining.candidates import collect_policy
from worker.retraining.challenger_stages import Forge, challenge_stages
from worker.retraining.dataset_stages import Bench, Tools, dataset_stages

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.retraining.stage_runner import Stage
    from worker.settings import Settings
    from worker.storage.interface import Storage


def all_stages(settings: Settings, engine: Engine, storage: Storage) -> list[Stage]:
    """Return every stage of a run, in order."""
    champions = Champions(
        registry=ModelsRegistry(engine),
        bundles=BundleStore(storage, settings.training.bucket),
        default=settings.scoring.bundle,
        cache=settings.scoring.cache,
    )
    place = bench(settings, engine, storage, champions)
    return [*dataset_stages(place), *challenge_stages(forge(settings, place, champions))]


def bench(settings: Settings, engine: Engine, storage: Storage, champions: Champions) -> Bench:
    """Put the surroundings of the data set's stages together."""
    training = settings.training
    return Bench(
        engine=engine,
        storage=storage,
        bucket=training.bucket,
        policy=collect_policy(training),
        max_bytes=settings.intake.max_bytes,
        load_tools=lambda: load_tools(champions.current(), _device(settings)),
        alignment=AlignmentConfig(
            shard_images=training.shard_images,
            batch_size=training.batch_size or batch_for(_device(settings)),
        ),
        limits=Limits(
            probe_auc=training.max_probe_auc,
            sharpness_auc=training.max_sharpness_auc,
            shift_px=training.max_shift_px,
            tone_levels=training.max_tone_levels,
        ),
        shaders=training.shaders,
    )


def forge(settings: Settings, place: Bench, champions: Champions) -> Forge:
    """Put the surroundings of the challenger's stages together."""
    training = settings.training
    return Forge(
        bench=place,
        champions=champions,
        work_dir=training.work_dir,
        device=_device(settings),
        recipe=ChallengerRecipe().at_most(training.steps),
        limits=GateLimits(),
    )


def load_tools(champion: Bundle, device: str) -> Tools:
    """Load the aligner and the feature space of the champion."""
    features = BundleFeatures(champion, device=device)
    aligner = bundle_round_trip(champion, device=device)
    return Tools(aligners=[aligner], features=features, space=features.name)


def _device(settings: Settings) -> str:
    if settings.scoring.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.scoring.device
