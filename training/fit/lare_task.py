"""Training of the lare branch: stored views with their error maps, cropped and flipped together.

The map is computed after every photometric change, because it must describe the pixels that the
backbone sees; afterwards only crops on the latent grid and flips act, on view and map alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detection.lare import center_crop_resize, lare_map, to_minus_one_one
from training.data.augmentation import sample_crop
from training.data.samples import BalancedSampler, Sample, upload_codec
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from detection.generators.generator import Generator
    from detection.networks.branch_configs import LareConfig
    from training.data.augmentation import AugmentationConfig
    from training.data.manifest import Entry


@dataclass(slots=True)
class LareSample:
    """One stored view uint8 (S, S, 3) with its error map float16 (C, S/f, S/f)."""

    entry: Entry
    view: NDArray[np.uint8]
    error: NDArray[np.float16]


def augmented_views(
    samples: Iterable[Sample],
    augmentation: AugmentationConfig,
    config: LareConfig,
    *,
    copies: int,
    seed: int,
) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """Make `copies` augmented views of every sample, codec-harmonised as the crops are."""
    for index, sample in enumerate(samples):
        for copy in range(copies):
            rng = np.random.default_rng([seed, index, copy])
            versions = [sample.pixels, *sample.shrunk]
            pixels = versions[int(rng.integers(len(versions)))]
            first = None if sample.lossy else upload_codec(rng)
            view = sample_crop(rng, pixels.shape, augmentation, first=first)
            yield sample, center_crop_resize(view.distort(pixels), config.side)


def with_maps(
    views: Iterable[tuple[Sample, NDArray[np.uint8]]],
    generator: Generator,
    noises: Tensor,
    config: LareConfig,
    *,
    device: str = "cpu",
    batch_size: int = 16,
) -> Iterator[LareSample]:
    """Compute the error maps of views, `batch_size` a forward pass (bfloat16 arithmetic)."""
    waiting: list[tuple[Sample, NDArray[np.uint8]]] = []

    def maps_of(stack: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        stacked = to_minus_one_one(np.stack(stack)).to(device)
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16):
            maps = lare_map(generator, stacked, noises.to(device), config.step)
        return list(maps.cpu().numpy())

    def flush() -> Iterator[LareSample]:
        maps = retry_in_halves(maps_of, [view for _, view in waiting])
        for (sample, view), error in zip(waiting, maps, strict=True):
            yield LareSample(sample.entry, view, error.astype(np.float16))
        waiting.clear()

    for pair in views:
        waiting.append(pair)
        if len(waiting) == batch_size:
            yield from flush()
    if waiting:
        yield from flush()


class LareTask:
    """Balanced batches of stored views and maps, and the loss on their logits."""

    def __init__(
        self, items: Sequence[LareSample], *, crop: int = 224, batch_size: int = 32, factor: int = 8
    ) -> None:
        self._real = BalancedSampler([item for item in items if not item.entry.generated])
        self._generated = BalancedSampler([item for item in items if item.entry.generated])
        self._crop, self._batch_size, self._factor = crop, batch_size, factor

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make views uint8 (B, 3, crop, crop), maps float32 (B, C, crop/f, crop/f), labels (B,)."""
        rng = np.random.default_rng([seed, step])
        views, maps, labels = [], [], []
        for index in range(self._batch_size):
            item = (self._generated if index % 2 else self._real).pick(rng)
            view, error = self._crop_both(rng, item)
            views.append(view)
            maps.append(error)
            labels.append(float(index % 2))
        return {
            "views": torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous(),
            "maps": torch.from_numpy(np.stack(maps)).float(),
            "labels": torch.tensor(labels),
        }

    def _crop_both(
        self, rng: np.random.Generator, item: LareSample
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        factor, cells = self._factor, self._crop // self._factor
        room = item.error.shape[1] - cells
        top, left = (int(rng.integers(room + 1)) for _ in range(2))
        y, x = top * factor, left * factor
        view = item.view[y : y + self._crop, x : x + self._crop]
        error = item.error[:, top : top + cells, left : left + cells]
        if rng.random() < 0.5:
            return np.ascontiguousarray(view[:, ::-1]), np.ascontiguousarray(error[:, :, ::-1])
        return view, error

    @staticmethod
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy, and the accuracy at logit 0."""
        views = batch["views"].to(memory_format=torch.channels_last).float() / 127.5 - 1
        logits = model(views, batch["maps"]).float()
        loss = functional.binary_cross_entropy_with_logits(logits, batch["labels"])
        right = ((logits > 0) == (batch["labels"] > 0.5)).float().mean()
        return {"loss": loss, "accuracy": right}
