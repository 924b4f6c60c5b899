"""Training samples of a challenger, loaded once from the training split, downsized.

1. windows of the photographs with their reconstructions, and of confirmed generated images (the
   aligned branch's pairs and unpaired crops);
2. augmented views with error maps of photographs, confirmed generated images and partial-noise
   reconstructions (the lare branch's). Autoencoder pairs carry next to no error and stay out, and
   so do renderings, whose error says nothing of photographs;
3. features of augmented views of photographs and confirmed images (the backbone branch's).

A share of the groups, chosen by hash, is held back for early stopping.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from detection.lare import center_crop_resize
from training.bundles.challenger_head import (
    HeadSamples,
    is_held_back,
    joined,
    sample_features,
)
from training.data.augmentation import GRID, AugmentationConfig
from training.data.diffusion_sampling import PartialNoise
from training.data.manifest import GENERATED, REAL, Entry
from training.data.samples import Sample, shrink
from training.data.shaders import SHADERS
from training.data.shards import training_samples
from training.files import written_aside
from training.fit.lare_task import LareSample, augmented_views, with_maps
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from detection.backbone import Backbone
    from detection.bundle_generator import LareComponents
    from detection.generators.generator import Generator
    from training.data.shards import SampleFiles

#: Larger images are cut to a square of so many pixels: crops are taken from it.
WINDOW = 512
#: Set and family name of partial-noise reconstructions.
PARTIAL_NOISE = "partial-noise"
_VIEWS, _FEATURES = "views.safetensors", "features.safetensors"
_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """How many images are learnt from, and how much is made of each."""

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    validation: float = 0.15
    view_copies: int = 2
    partial_noise_images: int = 64


@dataclass(frozen=True, slots=True)
class ChallengerData:
    """Samples for the aligned branch, stored views for the lare branch, features for the head."""

    samples: list[Sample]
    items: list[LareSample]
    head: HeadSamples | None = None

    def divided(self, share: float) -> tuple[ChallengerData, ChallengerData]:
        """Return what is trained on, and what a share of the groups holds back."""
        return self._of(share, held=False), self._of(share, held=True)

    def _of(self, share: float, *, held: bool) -> ChallengerData:
        return ChallengerData(
            [sample for sample in self.samples if is_held_back(sample.entry.group, share) is held],
            [item for item in self.items if is_held_back(item.entry.group, share) is held],
        )


def load_challenger_data(
    files: Iterable[SampleFiles],
    plan: SamplingPlan,
    run_dir: Path,
    *,
    lare: LareComponents | None,
    backbone: Backbone | None = None,
    aligned: bool = True,
    device: str = "cpu",
) -> ChallengerData:
    """Read files once; views, maps and features are kept in `run_dir` and read back after a kill.

    Without `lare`, `backbone` or `aligned` there is nothing for that branch; windows are many
    megabytes.
    """
    stored = run_dir / _VIEWS
    making = lare is not None and not stored.is_file()
    samples: list[Sample] = []
    views: list[tuple[Sample, np.ndarray]] = []
    origins: list[Sample] = []
    features_file = run_dir / _FEATURES
    features: list[np.ndarray] = []
    featured: list[Entry] = []
    for whole in training_samples(files):
        if making and lare is not None and whole.entry.set != SHADERS:
            views += _views_of(whole, plan, lare)
            if not whole.entry.generated and len(origins) < plan.partial_noise_images:
                view = np.array(center_crop_resize(whole.pixels, lare.config.side))
                origins.append(Sample(whole.entry, view, lossy=False))
        if backbone and not features_file.is_file() and whole.entry.set != SHADERS:
            featured.append(whole.entry)
            features.append(_features_of(whole, plan, backbone, device))
        if aligned:
            samples.append(_windowed(whole))
    if views and lare is not None:
        fakes = list(_partial_noise(origins, lare.generator))
        views += augmented_views(
            fakes, plan.augmentation, lare.config, copies=plan.view_copies, seed=0
        )
        made = with_maps(views, lare.generator, lare.noises, lare.config, device=device)
        _store(list(made), run_dir)
    if features:
        run_dir.mkdir(parents=True, exist_ok=True)
        joined(features, featured).save(features_file)
    return ChallengerData(
        samples,
        _stored(stored) if lare is not None and stored.is_file() else [],
        HeadSamples.load(features_file) if features_file.is_file() else None,
    )


def _views_of(
    whole: Sample, plan: SamplingPlan, lare: LareComponents
) -> Iterable[tuple[Sample, np.ndarray]]:
    return augmented_views(
        [whole],
        plan.augmentation,
        lare.config,
        copies=plan.view_copies,
        seed=_seed(whole.entry),
    )


def _features_of(
    whole: Sample, plan: SamplingPlan, backbone: Backbone, device: str
) -> NDArray[np.float32]:
    return sample_features(
        whole,
        backbone,
        plan.augmentation,
        copies=plan.view_copies,
        seed=_seed(whole.entry),
        device=device,
    )


def _seed(entry: Entry) -> int:
    return int.from_bytes(hashlib.sha256(entry.path.name.encode()).digest()[:4], "big")


def _windowed(whole: Sample) -> Sample:
    """Cut a window on the JPEG grid, the same of the reconstructions."""
    rng = np.random.default_rng(_seed(whole.entry))
    rows, columns = (
        slice(start, start + WINDOW)
        for start in (
            int(rng.integers(max(0, length - WINDOW) // GRID + 1)) * GRID
            for length in whole.pixels.shape[:2]
        )
    )
    pixels = np.ascontiguousarray(whole.pixels[rows, columns])
    scales = [] if whole.entry.generated else rng.uniform(0.5, 0.95, 2).tolist()
    return Sample(
        whole.entry,
        pixels,
        lossy=whole.lossy,
        shrunk=[shrink(pixels, scale) for scale in scales],
        reconstructions={
            name: np.ascontiguousarray(made[rows, columns])
            for name, made in whole.reconstructions.items()
        },
    )


def _partial_noise(origins: Sequence[Sample], generator: Generator) -> Iterator[Sample]:
    for number, start in enumerate(range(0, len(origins), _AT_ONCE)):
        part = origins[start : start + _AT_ONCE]
        aligner = PartialNoise(PARTIAL_NOISE, generator, step=100 + 50 * (number % 7))
        made = retry_in_halves(aligner.reconstruct, [origin.pixels for origin in part])
        for origin, pixels in zip(part, made, strict=True):
            entry = Entry(
                path=Path(PARTIAL_NOISE) / origin.entry.path.name,
                label=GENERATED,
                set=PARTIAL_NOISE,
                family=PARTIAL_NOISE,
                # The group of the original: a derivative stays on its original's side for ever.
                group=origin.entry.group,
            )
            yield Sample(entry, pixels, lossy=False)


def _store(items: Sequence[LareSample], run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    tensors = {
        "view": torch.from_numpy(np.stack([item.view for item in items])),
        "error": torch.from_numpy(np.stack([item.error for item in items])),
    }
    listed = [
        [str(item.entry.path), item.entry.label, item.entry.set, item.entry.group] for item in items
    ]
    with written_aside(run_dir / _VIEWS) as aside:
        save_file(tensors, aside, metadata={"entries": json.dumps(listed)})


def _stored(file: Path) -> list[LareSample]:
    with safe_open(str(file), "pt") as handle:
        listed = json.loads(handle.metadata()["entries"])
    tensors = load_file(file)
    entries = [
        Entry(
            path=Path(path),
            label=label,
            set=set_,
            family="" if label == REAL else set_,
            group=group,
        )
        for path, label, set_, group in listed
    ]
    views, errors = tensors["view"].numpy(), tensors["error"].numpy()
    return [LareSample(*row) for row in zip(entries, views, errors, strict=True)]
