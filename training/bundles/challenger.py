"""A challenger: the champion, taught further on a site's own data and calibrated again.

A site does not have the images that the champion was made from, so training starts from the
champion's weights at a low rate, and keeps the weights that do best on groups held back. Thresholds
rest on the data set's calibration side, of which neither model trained on an image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from detection.aligned import AlignedNet
from detection.backbone import Backbone
from detection.bundle import Bundle, BundleProvenance
from detection.bundle_generator import load_lare
from detection.detector import Detector
from detection.egre import Egre
from training.bundles.build import code_revision
from training.bundles.cards.challenger import challenger_card
from training.bundles.challenger_data import ChallengerData, SamplingPlan, load_challenger_data
from training.bundles.challenger_head import head_of, teach_head
from training.bundles.writer import DRAFT_POINT, derive_bundle, draft_fusion
from training.data.manifest import sampling_weights
from training.evaluation.calibration import (
    TARGETS,
    CalibrationError,
    class_weights,
    effective_count,
    expected_calibration_error,
    fit_fusion,
    operating_points,
    reals_needed,
)
from training.evaluation.variants import score_variants
from training.files import written_aside
from training.fit.aligned_task import AlignedBatch, AlignedTask
from training.fit.early_stopping import EarlyStopping, Patience, mean_loss
from training.fit.lare_task import LareTask
from training.fit.loop import LoopConfig, fit
from training.fit.tensorboard import HELD_BACK, CurveWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from detection.bundle_generator import LareComponents
    from detection.fusion import Fusion, OperatingPoint
    from training.data.manifest import Entry
    from training.data.shards import SampleFiles
    from training.evaluation.calibration import CalibrationKind
    from training.evaluation.variants import ScoredVariants
    from training.fit.loop import Task

ALIGNED, EGRE, BACKBONE = "aligned.safetensors", "egre.safetensors", "backbone.safetensors"
#: Processes that make batches beside a GPU; on a CPU they would only compete with training.
LOADERS_BESIDE_GPU = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengerRecipe:
    """Every number that shapes a challenger."""

    sampling: SamplingPlan = field(default_factory=SamplingPlan)
    aligned_batch: AlignedBatch = field(default_factory=lambda: AlignedBatch(pairs=6, unpaired=6))
    lare_batch_size: int = 16
    loop: LoopConfig = LoopConfig(
        steps=300,
        learning_rate=3e-4,
        warmup_steps=20,
        ema_decay=0.98,
        checkpoint_every=25,
        loader_workers=0,
    )
    patience: Patience = field(default_factory=Patience)
    validation_batches: int = 6

    def at_most(self, steps: int) -> ChallengerRecipe:
        """Return the recipe at another length."""
        return replace(self, loop=replace(self.loop, steps=steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedBranch:
    """A branch's weights, and its loss on groups held back by step (empty without any)."""

    weights: dict[str, Tensor]
    losses: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengerOrigin:
    """What a challenger is made from, for its provenance."""

    snapshot_digest: str
    families: Sequence[str]
    data_licence: str
    facts: Mapping[str, Any]


def fine_tune(
    files: Iterable[SampleFiles],
    champion: Bundle,
    recipe: ChallengerRecipe,
    run_dir: Path,
    *,
    device: str = "cpu",
    generators: Path | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> dict[str, TrainedBranch]:
    """Teach the champion's branches on the training side; returns each branch by its file's name.

    Resumes from `run_dir`. `on_step` receives the file's name and the steps done. `generators` is
    as `Detector` takes it. Raises `TrainingDiverged` when a loss stops being finite.
    """
    built = networks(champion)
    backbone = built.pop(BACKBONE, None)
    if isinstance(backbone, Backbone):
        backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    data = load_challenger_data(
        files,
        recipe.sampling,
        run_dir,
        lare=lare_of(champion, device, generators) if EGRE in built else None,
        backbone=backbone if isinstance(backbone, Backbone) else None,
        aligned=ALIGNED in built,
        device=device,
    )
    training, held = data.divided(recipe.sampling.validation)
    tuned = {}
    if isinstance(backbone, Backbone) and data.head is not None and data.head.both_classes:
        state = backbone.state_dict()
        weights = {name: value.cpu().contiguous() for name, value in state.items()}
        champions = head_of(weights, backbone.config)
        head, losses = teach_head(data.head, champions, recipe.sampling.validation)
        tuned[BACKBONE] = TrainedBranch(weights={**weights, **head.state()}, losses=losses)
    for name, network in built.items():
        tasks = [_task(name, part, recipe) for part in (training, held)]
        if tasks[0] is None:
            continue
        tuned[name] = _tuned(
            network,
            tasks[0],
            tasks[1],
            recipe,
            run_dir / name.removesuffix(".safetensors"),
            device=device,
            on_step=None if on_step is None else partial(on_step, name),
        )
    return tuned


def networks(bundle: Bundle) -> dict[str, nn.Module]:
    """Build the classifiers of a bundle with its weights, by the name of their file."""
    manifest = bundle.manifest
    built: dict[str, nn.Module] = {}
    if manifest.aligned is not None:
        built[ALIGNED] = AlignedNet(manifest.aligned)
    if manifest.egre is not None:
        built[EGRE] = Egre(manifest.egre)
    if manifest.backbone is not None:
        built[BACKBONE] = Backbone(manifest.backbone)
    for name, network in built.items():
        weights = load_file(bundle.path(name))
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    return built


def lare_of(
    champion: Bundle, device: str = "cpu", generators: Path | None = None
) -> LareComponents | None:
    """Load what a bundle makes error maps and partial-noise images with, or None."""
    lare = load_lare(champion, generators=generators)
    if lare is not None:
        lare.generator.eval().requires_grad_(requires_grad=False).to(device)
    return lare


def _task(name: str, data: ChallengerData, recipe: ChallengerRecipe) -> Task | None:
    """Return the task of a branch, or None where a class that it needs is missing."""
    if name == ALIGNED:
        if not any(sample.reconstructions for sample in data.samples):
            return None
        fakes = any(sample.entry.generated for sample in data.samples)
        batch = recipe.aligned_batch if fakes else replace(recipe.aligned_batch, unpaired=0)
        return AlignedTask(data.samples, recipe.sampling.augmentation, batch)
    labels = {item.entry.generated for item in data.items}
    if len(labels) < 2:
        return None
    side = data.items[0].view.shape[0]
    factor = side // data.items[0].error.shape[1]
    return LareTask(
        data.items,
        crop=side - side // 8,
        batch_size=recipe.lare_batch_size,
        factor=factor,
    )


def _tuned(
    network: nn.Module,
    task: Task,
    held: Task | None,
    recipe: ChallengerRecipe,
    run_dir: Path,
    *,
    device: str,
    on_step: Callable[[int], None] | None,
) -> TrainedBranch:
    file = run_dir / "final.safetensors"
    twin = copy.deepcopy(network)

    def loss_of(task: Task, weights: Mapping[str, Tensor]) -> float:
        return mean_loss(twin, task, weights, batches=recipe.validation_batches, device=device)

    with CurveWriter(run_dir, HELD_BACK) as curves:
        stopping = None
        if held is not None:
            stopping = EarlyStopping(
                run_dir,
                partial(loss_of, held),
                recipe.patience,
                last=recipe.loop.steps,
                curves=curves,
            )
        if not file.is_file():
            run_dir.mkdir(parents=True, exist_ok=True)
            beside_gpu = torch.device(device).type == "cuda"
            loop = replace(recipe.loop, loader_workers=LOADERS_BESIDE_GPU if beside_gpu else 0)
            weights = fit(
                network, task, loop, run_dir, device=device, on_step=on_step, stop=stopping
            )
            kept = weights if stopping is None else stopping.best()
            kept = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
            with written_aside(file) as aside:
                save_file(kept, aside)
    return TrainedBranch(
        weights=load_file(file), losses={} if stopping is None else stopping.history()
    )


def require_calibration(entries: Sequence[Entry]) -> None:
    """Raise `CalibrationError` when these images cannot support any operating point."""
    reals = [entry for entry in entries if not entry.generated]
    fair = [entry for entry in reals if not entry.audited]
    needed, generated = reals_needed(max(TARGETS)), len(entries) - len(reals)
    worth = min(effective_count(sampling_weights(of)) if of else 0.0 for of in (reals, fair))
    if worth >= needed and generated:
        return
    audited = len(reals) - len(fair)
    raise CalibrationError(
        f"the calibration side holds {len(reals)} photographs and {generated} generated images: at"
        f" least {needed} photographs and one generated image are needed, and the photographs are"
        f" worth {worth:.0f} by how they were sampled"
        + (
            f"; {audited} of them were drawn by the random audit from what the champion let"
            " through, which can only tighten a threshold: name a trusted source"
            if audited
            else ""
        )
    )


def calibrate_challenger(
    folder: Path,
    champion: Bundle,
    weights: Mapping[str, Mapping[str, Tensor]],
    entries: Sequence[Entry],
    origin: ChallengerOrigin,
    *,
    device: str = "cpu",
    generators: Path | None = None,
) -> Bundle:
    """Fit fusion and operating points to the calibration side, and write the challenger's bundle.

    Every image counts by its weight among those of its source (`sampling_weights`); photographs of
    the random audit only tighten thresholds.
    Raises `CalibrationError` when every branch argues backwards on the images, or when they support
    no operating point.
    """
    require_calibration(entries)
    draft = derive_bundle(
        folder,
        champion,
        weights,
        card="",
        generators=generators,
        fusion=draft_fusion(champion.manifest.fusion.weights),
        operating_points=(DRAFT_POINT,),
    )
    forms = score_variants(Detector(draft, device=device, generators=generators), entries)
    fusion = _fused(forms, "isotonic" if champion.manifest.fusion.isotonic else "temperature")
    points = _supported_points(forms, fusion)
    figures = _figures(forms, fusion)
    seen = {*champion.manifest.provenance.seen_families, *origin.families}
    provenance = BundleProvenance(
        snapshot_digest=origin.snapshot_digest,
        code_revision=code_revision(),
        recipe=f"training.challenger.ChallengerRecipe from {champion.model_version}",
        seen_families=tuple(sorted(seen)),
        data_licence=origin.data_licence,
    )
    return derive_bundle(
        folder,
        champion,
        weights,
        card=challenger_card(champion, points, provenance, figures),
        generators=generators,
        fusion=fusion,
        operating_points=points,
        metrics={"challenger": {"calibration": figures, **origin.facts}},
        provenance=provenance,
    )


def _fused(forms: ScoredVariants, kind: CalibrationKind) -> Fusion:
    fusion = fit_fusion(forms.pooled(), kind, np.tile(forms.weights, len(forms.scored)))
    if not any(fusion.weights.values()):
        raise CalibrationError(
            "no branch tells the generated images of the calibration side from its photographs:"
            " what was learnt does not hold on images that were not trained on"
        )
    return fusion


def _supported_points(forms: ScoredVariants, fusion: Fusion) -> tuple[OperatingPoint, ...]:
    clean = forms.scored["clean"]
    audited = np.array([entry.audited for entry in clean.entries])
    worst, generated = forms.worst(fusion), clean.logits.generated
    points = operating_points(worst, generated, forms.weights, audited=audited)
    if not any(point.supported for point in points):
        raise CalibrationError(
            f"{points[0].reals} photographs support no operating point: too many of them score high"
        )
    return points


def _figures(forms: ScoredVariants, fusion: Fusion) -> dict[str, Any]:
    clean, worth = forms.scored["clean"].logits, forms.weights
    probabilities = np.array([fusion.probability(value, 0.5) for value in clean.fused(fusion)])
    return {
        "photographs": int((~clean.generated).sum()),
        "effective_photographs": round(effective_count(worth[~clean.generated]), 1),
        "generated": int(clean.generated.sum()),
        "expected_calibration_error": expected_calibration_error(
            probabilities, clean.generated, class_weights(clean.generated, worth)
        ),
    }
