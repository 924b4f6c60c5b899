"""Builds the stages of a run and their dependencies from the settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from detection.generators.presets import find_preset
from training.bundles.challenger import ChallengerRecipe
from training.bundles.preset_generator import PresetPlace
from training.data.alignment import AlignmentConfig, batch_for
from training.data.bundle_aligner import pair_aligners
from training.evaluation.feature_space import BundleFeatures
from training.evaluation.promotion_gate import GateLimits
from training.evaluation.shortcut_audit import AuditLimits
from training.retraining.run_state import RunPlan
from worker.models.bundle_store import BundleStore
from worker.models.registry import ModelsRegistry
from worker.retraining.bucket_state import AlignmentModels, RunContext
from worker.retraining.bundle_access import BundleAccess
from worker.retraining.candidates import collect_policy
from worker.retraining.stages import stages_of
from worker.scoring.torch_scorer import choose_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from detection.bundle import Bundle
    from worker.retraining.stage_runner import Stage
    from worker.settings import Settings, Training
    from worker.storage.interface import Storage

#: Images that a challenger is taught on, the newest data sets' first: bounds memory and time.
MOST_IMAGES = 4000


def all_stages(settings: Settings, engine: Engine, storage: Storage) -> list[Stage]:
    """Return every stage of a run, in order."""
    return stages_of(run_context(settings, engine, storage))


def run_context(settings: Settings, engine: Engine, storage: Storage) -> RunContext:
    """Build what every stage of a run depends on."""
    training = settings.training
    bundle_access = BundleAccess(
        registry=ModelsRegistry(engine),
        bundles=BundleStore(storage, training.bucket),
        default=settings.scoring.bundle,
        cache=settings.scoring.cache,
    )
    device = choose_device(settings.scoring.device)
    return RunContext(
        engine=engine,
        storage=storage,
        bucket=training.bucket,
        policy=collect_policy(training),
        max_bytes=settings.intake.max_bytes,
        load_models=lambda: load_alignment_models(
            bundle_access.current(), device, preset_place(settings), training.aligners
        ),
        bundle_access=bundle_access,
        work_dir=training.work_dir,
        plan=replace(run_plan(training, device), generators=settings.scoring.generators),
        shaders=training.shaders,
    )


def run_plan(training: Training, device: str) -> RunPlan:
    """Return how challengers are made and judged by the settings."""
    recipe = ChallengerRecipe().at_most(training.steps)
    return RunPlan(
        recipe=recipe,
        device=device,
        data_licence="the site's own images",
        alignment=AlignmentConfig(
            shard_images=training.shard_images,
            batch_size=training.batch_size or batch_for(device),
            draw_codec=training.draw_codec,
        ),
        audit_limits=AuditLimits(
            probe_auc=training.max_probe_auc,
            sharpness_auc=training.max_sharpness_auc,
            shift_px=training.max_shift_px,
            tone_levels=training.max_tone_levels,
            mmd_squared=training.max_mmd_squared,
            frechet=training.max_frechet,
            information=training.max_information,
        ),
        gate_limits=GateLimits(),
        most_images=MOST_IMAGES,
    )


def preset_place(settings: Settings) -> PresetPlace:
    """Return where the presets lie that a champion and the makers of pairs name."""
    return PresetPlace(
        pins=settings.training.pins,
        generators=settings.scoring.generators,
        variant=settings.training.variant,
    )


def load_alignment_models(
    champion: Bundle, device: str, place: PresetPlace, presets: Sequence[str] = ()
) -> AlignmentModels:
    """Load the autoencoders that make pairs, and the feature space of the champion.

    They are those of `presets`, else the champion's own. Raises `PresetError` and `BundleError`,
    naming preset, repository, revision and folder.
    """
    named = [place.aligner(find_preset(name), device=device) for name in presets]
    aligners = pair_aligners(champion, named, device=device, generators=place.generators)
    features = BundleFeatures(champion, device=device)
    return AlignmentModels(aligners=aligners, features=features, space=features.name)
