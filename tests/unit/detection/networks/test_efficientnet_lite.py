"""EfficientNet-Lite0 of our own against timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from detection.backbone import build_network
from detection.networks.batch_norm_folding import fold_batch_norms
from detection.networks.efficientnet_lite import EfficientNetLite0


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """Timm's network with random weights and batch norms that do something."""
    torch.manual_seed(3)
    network: nn.Module = timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, num_classes=0
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.1)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def test_the_tensors_are_timms_in_name_shape_and_order(published: nn.Module) -> None:
    """Bundles and pretrained weights that were stored by timm's names load."""
    ours, theirs = EfficientNetLite0().state_dict(), published.state_dict()
    assert list(ours) == list(theirs)
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]


@pytest.mark.parametrize("shape", [(320, 320), (64, 64), (97, 131), (33, 224)])
def test_every_stage_computes_what_timms_does(published: nn.Module, shape: tuple[int, int]) -> None:
    """For even and odd sides, where "same" padding differs, the maps of every stage are equal."""
    network = EfficientNetLite0().eval()
    network.load_state_dict(published.state_dict())
    views = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    maps: dict[nn.Module, list[torch.Tensor]] = {}
    for one in (network, published):
        kept: list[torch.Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda *told, kept=kept: kept.append(told[-1]))
            for stage in one.blocks  # type: ignore[union-attr]  # a Sequential
        ]
        with torch.inference_mode():
            kept.append(one.forward_features(views))  # type: ignore[operator]  # both have it
        for hook in hooks:
            hook.remove()
        maps[one] = kept
    for ours, theirs in zip(maps[network], maps[published], strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_norm_can_be_folded(published: nn.Module) -> None:
    """Folded into the convolutions, no norm is left and the maps stay, odd sides included."""
    network = EfficientNetLite0().eval().requires_grad_(requires_grad=False)
    network.load_state_dict(published.state_dict())
    views = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network.forward_features(views)
        fold_batch_norms(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        largest = (network.forward_features(views) - expected).abs().max()
        assert expected.std() > 0.01
        assert largest < 1e-4 * expected.abs().max()


def test_random_weights_are_as_large_as_timms() -> None:
    """Both begin from the same distribution, so that an untrained network passes signals on."""
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    ours = build_network("tf_efficientnet_lite0")
    assert isinstance(ours, EfficientNetLite0)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if mine.dim() == 4:
            assert mine.std().item() == pytest.approx(other.std().item(), rel=0.35)
