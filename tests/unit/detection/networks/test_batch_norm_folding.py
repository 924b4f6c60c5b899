"""Batch norms folded into convolutions: the same logits with fewer passes over memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from detection.aligned import AlignedNet
from detection.egre import Egre
from detection.generators.generator import noise_bank
from detection.networks.batch_norm_folding import fold_batch_norms
from detection.networks.branch_configs import AlignedConfig, EgreConfig


def lived_in(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics, gains and offsets as training leaves them behind."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.2, 3)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    """Count the batch norms that are left."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_one_channel_by_hand() -> None:
    """Gain 6, offset 1, mean 2, variance 9: (2 x + 1 - 2) x 6 / 3 + 1 = 4 x - 1."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0)).eval()
    convolution, norm = network
    for tensor, value in (
        (convolution.weight, 2.0),
        (convolution.bias, 1.0),
        (norm.weight, 6.0),
        (norm.bias, 1.0),
        (norm.running_mean, 2.0),
        (norm.running_var, 9.0),
    ):
        tensor.data.fill_(value)
    fold_batch_norms(network)
    assert norms(network) == 0
    assert network[0].weight.item() == pytest.approx(4)
    assert network[0].bias.item() == pytest.approx(-1)


def test_the_aligned_network_keeps_its_logits() -> None:
    """No norm is left, and no logit moves by more than 1e-5."""
    network = lived_in(AlignedNet(AlignedConfig(widths=(4, 8, 8), depths=(1, 2, 1))))
    images = noise_bank((2, 3, 40, 56), seed=1).clamp(-1, 1)
    expected = network(images)
    fold_batch_norms(network)
    assert norms(network) == 0
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-5)


def test_the_refinement_network_keeps_its_logits() -> None:
    """The backbone's norms are folded; the one on the map follows no convolution and stays."""
    network = lived_in(Egre(EgreConfig()))
    images = noise_bank((2, 3, 64, 64), seed=1).clamp(-1, 1)
    errors = noise_bank((2, 4, 8, 8), seed=2).square()
    expected = network(images, errors)
    fold_batch_norms(network)
    assert norms(network) == 1
    torch.testing.assert_close(network(images, errors), expected, rtol=0, atol=1e-5)


def test_residual_blocks_of_torchvision_are_folded() -> None:
    """The blocks of ResNet-50 name their layers the same way."""
    block = lived_in(Bottleneck(16, 4))
    features = noise_bank((2, 16, 6, 6), seed=1)
    expected = block(features)
    fold_batch_norms(block)
    assert norms(block) == 0
    torch.testing.assert_close(block(features), expected, rtol=0, atol=1e-5)


def test_norms_that_do_more_stay() -> None:
    """A norm of another class or without a convolution before it is left alone."""

    class Activating(nn.BatchNorm2d):
        """A norm that also applies a nonlinearity, as some libraries have."""

    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), Activating(3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    )
    before = copy.deepcopy(network)
    fold_batch_norms(network.eval())
    assert [type(layer) for layer in network] == [type(layer) for layer in before]
