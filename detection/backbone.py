"""The backbone branch: a frozen network trained on ImageNet sees the whole picture.

The published EGRE (LaRE², arXiv 2403.17465) stands on a pretrained backbone. Here it stays frozen:
with few labelled images a multinomial regression on its features generalises to generators and
cameras that were never seen, where fine-tuning learns the content of the images. It reads the mean
and the standard deviation, over space, of the feature maps of several stages.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from detection.centre_square import centre_square
from detection.errors import SettingsError
from detection.networks.efficientnet_lite import EfficientNetLite0

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from detection.networks.branch_configs import BackboneConfig


#: Side of the surroundings that a cell of the map is judged by, in cells of the finest stage.
SURROUNDINGS = 7


class Backbone(nn.Module):
    """Frozen features and a head of one linear layer: a view to a logit."""

    centre: Tensor
    spread: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        """Build the architecture without weights.

        Raises `SettingsError` for an architecture or a stage that timm does not have.
        """
        super().__init__()
        self.config = config
        self.network: Any = build_network(config.architecture)
        known = dict(self.network.named_modules())
        if missing := [stage for stage in config.stages if stage not in known]:
            raise SettingsError(f"{config.architecture} has no stage {', '.join(missing)}")
        self._maps: dict[str, Tensor] = {}
        for stage in config.stages:
            known[stage].register_forward_hook(self._keep(stage))
        with torch.inference_mode():
            probe = torch.zeros(1, 3, 64, 64)
            width = self.eval().features(probe).shape[1]
        self.head = nn.Linear(width, len(config.real) + len(config.generated))
        # Mean and standard deviation of the features that the head learnt from.
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def features(self, views: Tensor) -> Tensor:
        """Map views (B, 3, H, W), floats of 8-bit values, to features (B, D) in float32.

        Of every stage the means of its channels, then their standard deviations.
        """
        return torch.cat([torch.cat(_statistics(one), dim=1) for one in self._stages(views)], dim=1)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map views (B, 3, H, W), floats of 8-bit values, to logits, maps and novelties.

        They are (B,), (B, h, w) and (B,). The logit is the log-odds of all generated classes
        against all real ones. A map says what the head makes of each part of the view: at every
        cell of the finest stage the log-odds by the means and standard deviations of the cell's
        surroundings alone, `SURROUNDINGS` cells a side, shifted so that its mean is the logit.
        """
        stages = self._stages(views)
        finest = max(stages, key=lambda one: one.shape[-1]).shape[-2:]
        # Not in half precision: the logit is a sum over thousands of features.
        with torch.autocast(views.device.type, enabled=False):
            statistics = [_statistics(one) for one in stages]
            features = torch.cat([torch.cat(one, dim=1) for one in statistics], dim=1)
            logits = self._odds(self.head(features))
            weights = self.head.weight.split(
                [one.shape[1] for one in stages for _ in range(2)], dim=1
            )
            scores = self.head.bias[:, None, None]
            for one, of_mean, of_spread in zip(stages, weights[::2], weights[1::2], strict=True):
                mean, spread = _around(one, SURROUNDINGS * one.shape[-1] // finest[-1])
                part = torch.einsum("bchw,kc->bkhw", mean, of_mean)
                part += torch.einsum("bchw,kc->bkhw", spread, of_spread)
                scores = scores + functional.interpolate(part, finest)
            contributions = self._odds(scores)
            contributions += (logits - contributions.mean((1, 2)))[:, None, None]
        return logits, contributions, novelty(features, self.centre, self.spread)

    def _odds(self, scores: Tensor) -> Tensor:
        """Turn the scores of the classes (B, K, …) into log-odds of the generated ones (B, …)."""
        real, generated = scores.split([len(self.config.real), len(self.config.generated)], 1)
        odds: Tensor = generated.logsumexp(1) - real.logsumexp(1)
        return odds

    def _stages(self, views: Tensor) -> list[Tensor]:
        self.network.forward_features((views - self.config.mean) / self.config.scale)
        return [self._maps.pop(stage).float() for stage in self.config.stages]

    def _keep(self, stage: str) -> Any:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._maps[stage] = output

        return keep


def novelty(features: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """Say how far features (B, D) lie from those that were learnt from, (B,) in float32.

    It is the logarithm of the mean squared z-score: about 0 for what is like them.
    """
    return ((features - centre) / spread).square().mean(dim=1).log()


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation over space of (B, C, h, w): (B, C) each."""
    return features.mean((2, 3)), features.var((2, 3)).clamp_min(1e-12).sqrt()


def _around(features: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every cell's surroundings of (B, C, h, w), each so.

    They are a square of `side` cells, made odd and 3 at least, as much of it as lies on the map.
    """
    side = max(3, side | 1)

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)

    ones = torch.ones_like(features[:1, :1])
    cells = functional.avg_pool2d(ones, side, 1, side // 2) * side**2
    centre = mean(features)
    variance = (mean(features.square()) - centre.square()) * cells / (cells - 1).clamp_min(1)
    return centre, variance.clamp_min(1e-12).sqrt()


def build_network(architecture: str) -> nn.Module:
    """Build a timm architecture without weights and classifier; raises `SettingsError`.

    That of the embedded bundle is built without timm.
    """
    if architecture == "tf_efficientnet_lite0":
        return EfficientNetLite0()
    import timm

    if not timm.is_model(architecture):
        raise SettingsError(f"timm has no architecture named {architecture!r}")
    network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0)
    return network


def whole_view(image: NDArray[np.uint8], config: BackboneConfig) -> NDArray[np.uint8]:
    """Cut the centre square of RGB uint8 (H, W, 3) and bring it to uint8 (side, side, 3).

    Squares larger than `shrink_to` are averaged over areas to that size; after the JPEG the rest of
    the way is antialiased bicubic.
    """
    left, top, square, _ = centre_square(*image.shape[:2])
    view = Image.fromarray(image[top : top + square, left : left + square])
    if square > config.shrink_to:
        view = view.resize((config.shrink_to, config.shrink_to), Image.Resampling.BOX)
    buffer = io.BytesIO()
    view.save(buffer, "JPEG", quality=config.quality, subsampling="4:2:0")
    view = Image.open(buffer)
    return np.asarray(view.resize((config.side, config.side), Image.Resampling.BICUBIC))


def to_views(views: NDArray[np.uint8]) -> Tensor:
    """Map uint8 views (B, H, W, 3) to float32 (B, 3, H, W) of the same values."""
    return torch.from_numpy(views).permute(0, 3, 1, 2).float()
