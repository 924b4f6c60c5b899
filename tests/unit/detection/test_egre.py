"""EGRE against hand-worked attention and gates, its ablation, and the reach of its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from detection.egre import ChannelRefinement, Egre, SpatialRefinement
from detection.errors import SettingsError
from detection.networks.branch_configs import EgreConfig

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
MAPS = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.1


def plain_spatial(channels: int, heads: int, map_channels: int) -> SpatialRefinement:
    """A refinement whose projections are identities and whose query is zero: equal logits."""
    module = SpatialRefinement(channels, heads, map_channels)
    with torch.no_grad():
        for layer in (module.key, module.value, module.output):
            layer.weight.copy_(torch.eye(channels))
            layer.bias.zero_()
        module.query.weight.zero_()
        module.query.bias.zero_()
        module.shift.weight.zero_()
        module.shift.bias.zero_()
    return module


def test_the_map_shifts_the_attention_of_each_head() -> None:
    """With equal logits, each head pools its half of the features by softmax of its own shift."""
    module = plain_spatial(4, 2, 1)
    with torch.no_grad():
        module.shift.weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
    features = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]]).reshape(1, 4, 1, 2)
    error = torch.tensor([0.0, math.log(3)]).reshape(1, 1, 1, 2)
    # Head 1 attends by (1, 3) / 4; head 2 by (1, 1/9) / (10/9) = (0.9, 0.1).
    expected = [0.25 * 1 + 0.75 * 5, 0.25 * 2 + 0.75 * 6, 0.9 * 3 + 0.1 * 7, 0.9 * 4 + 0.1 * 8]
    assert module(features, error)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_pooling_is_the_scaled_dot_product() -> None:
    """Query from the mean token, keys and values from all, divided by the head width's root."""
    torch.manual_seed(2)
    module = SpatialRefinement(8, 2, 3)
    features, error = torch.randn(2, 8, 3, 3), torch.randn(2, 3, 3, 3)
    found = module(features, error)
    for index in range(2):
        tokens = features[index].reshape(8, 9).T
        query = module.query(tokens.mean(0))
        keys, values = module.key(tokens), module.value(tokens)
        shift = module.shift(error[index : index + 1])[0].reshape(2, 9)
        pooled = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            logits = keys[:, part] @ query[part] / 2 + shift[head]
            pooled.append(torch.softmax(logits, 0) @ values[:, part])
        torch.testing.assert_close(found[index], module.output(torch.cat(pooled)))


def test_the_gate_is_computed_from_the_pooled_map() -> None:
    """Each channel is scaled by a sigmoid of the map's mean and maximum."""
    module = ChannelRefinement(2, 1)
    with torch.no_grad():
        first, _, last = module.gate
        first.weight.zero_()
        first.bias.zero_()
        first.weight[0] = torch.tensor([1.0, 0.0])
        first.weight[1] = torch.tensor([0.0, 1.0])
        last.weight.zero_()
        last.weight[0, 0] = last.weight[1, 1] = 1.0
        last.bias.zero_()
    error = torch.tensor([[1.0, 3.0], [2.0, 6.0]]).reshape(1, 1, 2, 2)
    gated = module(torch.tensor([[10.0, 100.0]]), error)[0].tolist()
    expected = [10 / (1 + math.exp(-3)), 100 / (1 + math.exp(-6))]
    assert gated == pytest.approx(expected, rel=1e-5)


def test_the_logit_reads_three_concatenated_features() -> None:
    """The head sees the pooled image feature, the spatially and the channel-refined one."""
    torch.manual_seed(3)
    model = Egre(EgreConfig()).eval()
    with torch.inference_mode():
        features = model.backbone(IMAGES)
        aligned = torch.nn.functional.adaptive_avg_pool2d(
            model.normalise(torch.log(MAPS + 1e-4)), features.shape[-2:]
        )
        pooled = features.mean(dim=(2, 3))
        parts = [pooled, model.spatial(features, aligned), model.channel(pooled, aligned)]
        expected = sum(
            part @ weight
            for part, weight in zip(parts, model.head.weight[0].split(128), strict=True)
        )
        torch.testing.assert_close(model(IMAGES, MAPS), expected + model.head.bias)


def test_without_the_map_the_map_has_no_influence() -> None:
    """The ablation gives the same logits under any map; the full module does not."""
    torch.manual_seed(4)
    without = Egre(EgreConfig(use_map=False)).eval()
    full = Egre(EgreConfig()).eval()
    full.load_state_dict(without.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(without(IMAGES, MAPS), without(IMAGES, 5 * MAPS.flip(-1)))
        assert not torch.allclose(full(IMAGES, MAPS), full(IMAGES, 5 * MAPS.flip(-1)), atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    """Every parameter has a finite gradient; only what softmax cancels has none to feel.

    Adding one constant to all logits of a head changes nothing, so the biases of key and shift
    keep a gradient of zero by construction.
    """
    torch.manual_seed(5)
    model = Egre(EgreConfig()).train()
    model(IMAGES, MAPS).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name not in {"spatial.key.bias", "spatial.shift.bias"}:
            assert float(parameter.grad.abs().max()) > 1e-8, name


@pytest.mark.parametrize("backbone", ["resnet50", "clip-resnet50"])
def test_large_backbones_give_logits(backbone: str) -> None:
    """The large preset's backbones fit the same module."""
    model = Egre(EgreConfig(backbone=backbone, heads=8)).eval()
    with torch.inference_mode():
        logits = model(IMAGES[:1], MAPS[:1])
    assert logits.shape == (1,)
    assert torch.isfinite(logits).all()


def test_an_impossible_configuration_is_refused() -> None:
    """An unknown backbone and a number of heads that does not divide are named."""
    with pytest.raises(SettingsError, match="no backbone named 'vgg'"):
        Egre(EgreConfig(backbone="vgg"))
    with pytest.raises(SettingsError, match="do not divide into 5 heads"):
        Egre(EgreConfig(heads=5))
