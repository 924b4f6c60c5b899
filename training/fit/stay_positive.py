"""Stay-Positive: the aligned head, retrained with weights that can only argue for `generated`.

Rajan and Lee (arXiv 2502.07778): a detector that also learns what photographs look like takes their
traces (a camera's JPEG, say) as proof of innocence, and fails on fakes that carry them. The pooled
features are never negative, so a head without negative weights can only collect evidence of
generation; the rest of the network stays as it was trained.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.fit.loop import LoopConfig, fit

if TYPE_CHECKING:
    from pathlib import Path

    from detection.aligned import AlignedNet
    from training.fit.loop import Task

HEAD_LOOP = LoopConfig(steps=400, learning_rate=1e-3, weight_decay=0.0)


class HeadOnly(nn.Module):
    """A trained network whose head alone is a part of this module: nothing else trains or is kept.

    Its weights start at zero where they were negative.
    """

    def __init__(self, network: AlignedNet) -> None:
        super().__init__()
        # In a tuple, so that the loop sees neither its parameters nor its running statistics.
        self._frozen = (network.eval(),)
        self.head = copy.deepcopy(network.head)
        self.clamp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Set negative weights to zero, as the paper does after every step; the bias is free."""
        self.head.weight.clamp_(min=0)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to logits (B,), positive for generated."""
        with torch.no_grad():
            features = self._frozen[0].features(images)
        logits: Tensor = self.head(features)
        return logits.squeeze(1)


def retrain_head(
    network: AlignedNet, task: Task, config: LoopConfig, run_dir: Path, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Retrain the head under the constraint; returns the whole network's weights.

    Resumes from `run_dir` as `fit` does.
    """
    model = HeadOnly(network.to(device))
    averaged = fit(model, task, config, run_dir, device=device, on_step=lambda _: model.clamp())
    # The average also saw the weights between a step and its clamp.
    averaged["head.weight"] = averaged["head.weight"].clamp(min=0)
    return network.state_dict() | averaged
