"""Training of the aligned branch: paired crops, beside codec-harmonised generated images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data.augmentation import AugmentationConfig, sample_crop
from training.data.samples import BalancedSampler, Sample, upload_codec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedBatch:
    """Composition of one batch: pairs (two crops each) and unpaired crops of each class."""

    pairs: int = 14
    unpaired: int = 18
    smoothing: float = 0.02


class AlignedTask:
    """Batches of crops and the loss on their logits.

    `paired_only` are reals that enter in pairs alone: beside unpaired fakes their content would
    give them away.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        augmentation: AugmentationConfig,
        composition: AlignedBatch,
        paired_only: Sequence[Sample] = (),
    ) -> None:
        real = [sample for sample in samples if not sample.entry.generated]
        self._augmentation, self._composition = augmentation, composition
        self._real = BalancedSampler(real)
        self._paired = BalancedSampler([s for s in (*real, *paired_only) if s.reconstructions])
        self._generated = BalancedSampler([s for s in samples if s.entry.generated])
        # No method: other processes get it without the samples.
        self.loss = partial(crop_loss, smoothing=composition.smoothing)

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make uint8 crops (B, 3, crop, crop) and float labels (B,), 1 for generated."""
        rng = np.random.default_rng([seed, step])
        crops: list[NDArray[np.uint8]] = []
        labels: list[float] = []
        for _ in range(self._composition.pairs):
            crops += self._pair(rng)
            labels += [0.0, 1.0]
        for _ in range(self._composition.unpaired):
            crops += [self._unpaired_real(rng), self._unpaired_generated(rng)]
            labels += [0.0, 1.0]
        stacked = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return {"crops": stacked.contiguous(), "labels": torch.tensor(labels)}

    def _pair(self, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
        sample = self._paired.pick(rng)
        partners = sorted(sample.reconstructions)
        partner = sample.reconstructions[partners[int(rng.integers(len(partners)))]]
        first = upload_codec(rng) if rng.random() < 0.6 else None
        view = sample_crop(rng, sample.pixels.shape, self._augmentation, first=first)
        return [view.apply(sample.pixels), view.apply(partner)]

    def _unpaired_real(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        sample = self._real.pick(rng)
        versions = [sample.pixels, sample.pixels, *sample.shrunk]
        pixels = versions[int(rng.integers(len(versions)))]
        crop = sample_crop(rng, pixels.shape, self._augmentation, first=upload_codec(rng))
        return crop.apply(pixels)

    def _unpaired_generated(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        sample = self._generated.pick(rng)
        first = None if sample.lossy else upload_codec(rng)
        crop = sample_crop(rng, sample.pixels.shape, self._augmentation, first=first)
        return crop.apply(sample.pixels)


def crop_loss(model: nn.Module, batch: dict[str, Tensor], *, smoothing: float) -> dict[str, Tensor]:
    """Binary cross-entropy with label smoothing, and the accuracy at logit 0."""
    crops = batch["crops"].to(memory_format=torch.channels_last).float() / 127.5 - 1
    logits = model(crops).float()
    labels = batch["labels"]
    target = labels * (1 - smoothing) + smoothing / 2
    loss = functional.binary_cross_entropy_with_logits(logits, target)
    return {"loss": loss, "accuracy": ((logits > 0) == (labels > 0.5)).float().mean()}
