"""Error-Guided feature REfinement (EGRE) of LaRE² (arXiv 2403.17465): align, then refine twice.

The latent error map is brought onto the grid of a backbone's feature map, then refines it

1. over space: attention pooling whose logits the map shifts, per head;
2. over channels: a gate computed from the pooled map scales the pooled features.

The logit comes from the concatenation [image feature, spatially refined, channel refined].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from detection.aligned import ResidualBlock
from detection.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from detection.networks.branch_configs import EgreConfig


class SmallBackbone(nn.Sequential):
    """A narrow residual network: (B, 3, H, W) to (B, 128, H/16, W/16)."""

    channels = 128

    def __init__(self) -> None:
        widths = (24, 48, 96, 128)
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        inputs = widths[0]
        for stage, width in enumerate(widths):
            layers.append(ResidualBlock(inputs, width, 2 if stage else 1))
            inputs = width
        super().__init__(*layers)


def _resnet50() -> tuple[nn.Module, int]:
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    return nn.Sequential(*list(network.children())[:-2]), 2048


def _clip_resnet50() -> tuple[nn.Module, int]:
    import timm

    network = timm.create_model("resnet50_clip", pretrained=False, num_classes=0, global_pool="")
    network.head = nn.Identity()
    return network, 2048


BACKBONES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "small": lambda: (SmallBackbone(), SmallBackbone.channels),
    "resnet50": _resnet50,
    "clip-resnet50": _clip_resnet50,
}


class SpatialRefinement(nn.Module):
    """Multi-head attention pooling; the aligned map is added to the logits of each head."""

    def __init__(self, channels: int, heads: int, map_channels: int) -> None:
        super().__init__()
        if channels % heads:
            raise SettingsError(f"{channels} feature channels do not divide into {heads} heads")
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.shift = nn.Conv2d(map_channels, heads, 1)

    def forward(self, features: Tensor, aligned_map: Tensor) -> Tensor:
        """Pool features (B, D, h, w) under a map (B, C, h, w) to (B, D)."""
        tokens = features.flatten(2).transpose(1, 2)
        query = self._split(self.query(tokens.mean(dim=1, keepdim=True)))
        key, value = self._split(self.key(tokens)), self._split(self.value(tokens))
        shift = self.shift(aligned_map).flatten(2).unsqueeze(2)
        pooled = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=shift.to(query.dtype)
        )
        refined: Tensor = self.output(pooled.transpose(1, 2).flatten(1))
        return refined

    def _split(self, tokens: Tensor) -> Tensor:
        split: Tensor = tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split


class ChannelRefinement(nn.Module):
    """A gate in (0, 1) for every feature channel, computed from the pooled map."""

    def __init__(self, channels: int, map_channels: int) -> None:
        super().__init__()
        hidden = max(16, channels // 4)
        self.gate = nn.Sequential(
            nn.Linear(2 * map_channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, pooled: Tensor, aligned_map: Tensor) -> Tensor:
        """Gate pooled features (B, D) by the mean and maximum of a map (B, C, h, w)."""
        summary = torch.cat([aligned_map.mean(dim=(2, 3)), aligned_map.amax(dim=(2, 3))], dim=1)
        gated: Tensor = pooled * torch.sigmoid(self.gate(summary))
        return gated


class Egre(nn.Module):
    """The lare branch's classifier: image and error map in, logit out."""

    def __init__(self, config: EgreConfig) -> None:
        super().__init__()
        if config.backbone not in BACKBONES:
            known = ", ".join(sorted(BACKBONES))
            raise SettingsError(f"no backbone named {config.backbone!r}: known are {known}")
        self.config = config
        self.backbone, channels = BACKBONES[config.backbone]()
        self.normalise = nn.BatchNorm2d(config.map_channels)
        self.spatial = SpatialRefinement(channels, config.heads, config.map_channels)
        self.channel = ChannelRefinement(channels, config.map_channels)
        self.head = nn.Linear(3 * channels, 1)

    def forward(self, images: Tensor, error_map: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [-1, 1] and maps (B, C, H/f, W/f) to logits (B,)."""
        features = self.backbone(images)
        # Errors are squared and heavy-tailed; their logarithm is nearly normal.
        logged = self.normalise(torch.log(error_map.to(images.dtype) + 1e-4))
        if not self.config.use_map:
            logged = torch.zeros_like(logged)
        aligned = functional.adaptive_avg_pool2d(logged, features.shape[-2:])
        pooled = features.mean(dim=(2, 3))
        refined = [pooled, self.spatial(features, aligned), self.channel(pooled, aligned)]
        logits: Tensor = self.head(torch.cat(refined, dim=1))
        return logits.squeeze(1)
