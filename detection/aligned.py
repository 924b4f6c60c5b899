"""The aligned branch: a residual network without stem down-sampling, on tiles at native resolution.

Rajan et al., ICLR 2025 (arXiv 2410.11835): decoder artefacts live in the finest scale, so the
network keeps full resolution through its first stage, trains on 96-pixel crops and reads images
without resizing them. A fixed high-pass residual is stacked onto the colours: it is what the
artefacts are part of, and it frees the first layers from having to find it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from detection.networks.branch_configs import AlignedConfig

#: Gain on the high-pass residual, so that it enters with about the spread of the colours.
RESIDUAL_GAIN = 4.0


class AlignedNet(nn.Module):
    """Crops to logits; stride 1 in the stem and the first stage, 2 into each later one."""

    def __init__(self, config: AlignedConfig) -> None:
        super().__init__()
        width = config.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)
        )
        blocks: list[nn.Module] = []
        for stage, (wide, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(ResidualBlock(width, wide, stride))
                width = wide
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 1)
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.binomial: Tensor
        self.register_buffer("binomial", torch.outer(kernel, kernel).repeat(3, 1, 1, 1), False)

    def features(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to pooled features (B, D)."""
        padded = functional.pad(images, (2, 2, 2, 2), mode="reflect")
        residual = images - functional.conv2d(padded, self.binomial, groups=3)
        stacked = torch.cat([images, RESIDUAL_GAIN * residual], dim=1)
        pooled: Tensor = self.body(self.stem(stacked)).mean(dim=(2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to logits (B,), positive for generated."""
        logits: Tensor = self.head(self.features(images))
        return logits.squeeze(1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where shape or stride changes.

    (He et al., CVPR 2016, figure 5 left; parameter names as in torchvision's `BasicBlock`, whose
    import would bring the compiler into every process that scores.)
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        # In place: on a CPU this network waits for memory more than for arithmetic.
        hidden = self.bn1(self.conv1(features)).relu_()
        mapped: Tensor = self.bn2(self.conv2(hidden)).add_(self.downsample(features)).relu_()
        return mapped


def tile_origins(height: int, width: int, *, tile: int, max_tiles: int) -> list[tuple[int, int]]:
    """Place at most `max_tiles` tiles evenly over an image, by its size alone.

    Returns (top, left) pairs. Sides shorter than a tile get one origin at 0 on that axis.
    """
    rows, columns = max(1, -(-height // tile)), max(1, -(-width // tile))
    while rows * columns > max_tiles:
        # Thin out the axis on which tiles stand closer together.
        if columns == 1 or (rows > 1 and height / rows <= width / columns):
            rows -= 1
        else:
            columns -= 1
    return [
        (top, left)
        for top in _spread(height - tile, rows)
        for left in _spread(width - tile, columns)
    ]


def _spread(room: int, count: int) -> list[int]:
    room = max(0, room)
    if count == 1:
        return [room // 2]
    return [round(index * room / (count - 1)) for index in range(count)]


def read_tiles(image: NDArray[np.uint8], config: AlignedConfig) -> NDArray[np.uint8]:
    """Cut the tiles of RGB uint8 (H, W, 3): uint8 (T, tile, tile, 3).

    An axis shorter than a tile is filled by mirroring.
    """
    height, width = image.shape[:2]
    tile = config.tile
    missing = ((0, max(0, tile - height)), (0, max(0, tile - width)), (0, 0))
    filled = np.pad(image, missing, mode="symmetric") if any(map(any, missing)) else image
    tiles = [
        filled[top : top + tile, left : left + tile]
        for top, left in tile_origins(height, width, tile=tile, max_tiles=config.max_tiles)
    ]
    return np.stack(tiles)


def cut_tiles(image: NDArray[np.uint8], config: AlignedConfig) -> Tensor:
    """Cut the tiles of RGB uint8 (H, W, 3) as floats (T, 3, tile, tile) in [-1, 1]."""
    return torch.from_numpy(read_tiles(image, config)).permute(0, 3, 1, 2).float() / 127.5 - 1


def aggregate(tile_logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Average tile logits (sum(counts),) to one logit an image (len(counts),)."""
    return torch.stack([logits.mean() for logits in tile_logits.split(list(counts))])
