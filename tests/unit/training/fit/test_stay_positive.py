"""The aligned head under the constraint that it only argues for `generated`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from detection.aligned import AlignedNet
from detection.generators.generator import noise_bank
from detection.networks.branch_configs import AlignedConfig
from training.fit.loop import LoopConfig
from training.fit.stay_positive import HeadOnly, retrain_head

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = LoopConfig(
    steps=40, learning_rate=0.05, weight_decay=0, warmup_steps=1, loader_workers=0, bfloat16=False
)


class Opposites:
    """Labels that one feature explains and another contradicts: a free head would take both."""

    def __init__(self, network: AlignedNet) -> None:
        self.images = noise_bank((32, 3, 16, 16), seed=1).clamp(-1, 1)
        with torch.inference_mode():
            features = network.features(self.images)
        self.labels = (features[:, 0] - features[:, 1]).gt(
            (features[:, 0] - features[:, 1]).median()
        )

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """The same images in every step."""
        del seed, step
        return {"images": self.images, "labels": self.labels.float()}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy."""
        logits = model(batch["images"])
        return {"loss": functional.binary_cross_entropy_with_logits(logits, batch["labels"])}


def network() -> AlignedNet:
    """A small network with a head of both signs."""
    torch.manual_seed(0)
    built = AlignedNet(AlignedConfig(widths=(4, 8), depths=(1, 1)))
    nn.init.normal_(built.head.weight)
    return built.eval()


def test_only_the_head_changes_and_no_weight_is_negative(tmp_path: Path) -> None:
    """The rest, running statistics included, stays to the bit; the head learns within bounds."""
    trained = network()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    task = Opposites(trained)
    start = HeadOnly(trained)
    first = task.loss(start, task.batch(0, 0))["loss"].item()
    weights = retrain_head(trained, task, CONFIG, tmp_path)
    assert weights.keys() == before.keys()
    assert weights["head.weight"].min() >= 0
    assert not torch.equal(weights["head.weight"], start.head.weight)
    for name, value in before.items():
        if not name.startswith("head."):
            torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    trained.load_state_dict(weights)
    assert task.loss(trained, task.batch(0, 0))["loss"].item() < first


def test_a_feature_can_come_back(tmp_path: Path) -> None:
    """A weight that began negative, and so at zero, still learns where its feature tells."""
    trained = network()
    with torch.no_grad():
        trained.head.weight.fill_(-1.0)
    weights = retrain_head(trained, Opposites(trained), CONFIG, tmp_path)
    assert weights["head.weight"].max() > 0


def test_more_of_a_feature_never_argues_for_a_photograph(tmp_path: Path) -> None:
    """The logit never falls as any pooled feature grows, and those are never negative."""
    trained = network()
    trained.load_state_dict(retrain_head(trained, Opposites(trained), CONFIG, tmp_path))
    features = trained.features(noise_bank((4, 3, 16, 16), seed=2))
    assert features.min() >= 0
    for channel in range(features.shape[1]):
        more = features.clone()
        more[:, channel] += 1
        assert torch.all(trained.head(more) >= trained.head(features))
