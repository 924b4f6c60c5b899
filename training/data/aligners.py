"""Aligners make the generated side of a pair from the real side (arXiv 2410.11835).

An `Aligner` maps a real image to a reconstruction of the same size: the pair then differs by the
decoder's artefacts alone. `AutoencoderReconstruction` sends the image through an autoencoder and
feeds the aligned branch. Padding is by reflection up to the autoencoder's factor and cropped off
again, so that no pixel moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class Aligner(Protocol):
    """Makes reconstructions; `name` says by which generator, for manifests and reports."""

    @property
    def name(self) -> str:
        """Name of the generator and of the kind of reconstruction."""

    @property
    def identity(self) -> str:
        """All that its reconstructions depend on: stored ones are not taken for another's."""

    def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Reconstruct RGB images, uint8 (H, W, 3) of one size, to the same size and order."""


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Stack RGB uint8 (H, W, 3) images of one size to float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def to_images(tensor: Tensor) -> list[NDArray[np.uint8]]:
    """Round float (B, 3, H, W) in [0, 1] to RGB uint8 (H, W, 3) images."""
    rounded = (tensor.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return list(rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Pad (B, C, H, W) on the right and below by reflection to multiples of `factor`."""
    height, width = images.shape[-2:]
    below, right = -height % factor, -width % factor
    return functional.pad(images, (0, right, 0, below), mode="reflect")


@dataclass(frozen=True, slots=True)
class AutoencoderReconstruction:
    """Encode and decode, no denoising.

    `round_trip` maps float (B, 3, H, W) in [0, 1] to the same, sides multiples of `factor`;
    `version` tells apart autoencoders of one name.
    """

    name: str
    round_trip: Callable[[Tensor], Tensor]
    factor: int
    version: str = ""

    @property
    def identity(self) -> str:
        """The name, and the version where there is one."""
        return f"{self.name}@{self.version}" if self.version else self.name

    def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Reconstruct RGB images, uint8 (H, W, 3) of one size, to the same size and order."""
        pixels = to_tensor(images)
        height, width = pixels.shape[-2:]
        with torch.inference_mode():
            restored = self.round_trip(pad_to_multiple(pixels, self.factor))
        return to_images(restored[..., :height, :width])
