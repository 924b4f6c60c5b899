"""EfficientNet-Lite0, the backbone of the embedded bundle, without the library it was published in.

EfficientNet (Tan and Le, ICML 2019) with ReLU6, without squeeze and excitation. Names and order of
the tensors are those of timm's `tf_efficientnet_lite0`, whose import would bring every architecture
of timm and torchvision, and the compiler, into each process that scores.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

#: Of each stage: kernel, stride of its first block, expansion, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
#: Where the batch norms of TensorFlow differ from torch's.
_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W) to feature maps (B, 1280, H/32, W/32), sides rounded up."""

    norms: ClassVar = {"conv_stem": "bn1", "conv_head": "bn2"}

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _SameConv2d(3, 32, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(32, _EPSILON)
        channels, stages = 32, []
        for kernel, stride, expansion, outputs, count in _STAGES:
            blocks: list[nn.Module] = []
            for index in range(count):
                step = 1 if index else stride
                blocks.append(
                    _InvertedResidual(channels, outputs, kernel, step, expansion)
                    if expansion > 1
                    else _DepthwiseSeparable(channels, outputs, kernel)
                )
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280, _EPSILON)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as the paper's own code begins
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the last feature maps (B, 1280, h, w)."""
        hidden = self.blocks(_relu6(self.bn1(self.conv_stem(images))))
        return _relu6(self.bn2(self.conv_head(hidden)))


def _relu6(hidden: Tensor) -> Tensor:
    return functional.relu6(hidden, inplace=True)


class _SameConv2d(nn.Conv2d):
    """Pads as TensorFlow does: to the least that fills the last step, the odd pixel at the end."""

    def forward(self, hidden: Tensor) -> Tensor:
        padding: list[int] = []
        for side, kernel, stride in zip(
            hidden.shape[:1:-1], self.kernel_size, self.stride, strict=True
        ):
            room = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            padding += [room // 2, room - room // 2]
        return super().forward(functional.pad(hidden, padding))


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride > 1:
        return _SameConv2d(channels, channels, kernel, stride, groups=channels, bias=False)
    padding = kernel // 2
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=False)


class _DepthwiseSeparable(nn.Module):
    norms: ClassVar = {"conv_dw": "bn1", "conv_pw": "bn2"}

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(inputs, kernel, 1)
        self.bn1 = nn.BatchNorm2d(inputs, _EPSILON)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, _EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        filtered = _relu6(self.bn1(self.conv_dw(hidden)))
        narrow: Tensor = self.bn2(self.conv_pw(filtered))
        return narrow


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a shortcut where shapes allow (Sandler, CVPR 2018)."""

    norms: ClassVar = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.conv_pw = nn.Conv2d(inputs, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, _EPSILON)
        self.conv_dw = _depthwise(wide, kernel, stride)
        self.bn2 = nn.BatchNorm2d(wide, _EPSILON)
        self.conv_pwl = nn.Conv2d(wide, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, _EPSILON)
        self._shortcut = stride == 1 and inputs == outputs

    def forward(self, hidden: Tensor) -> Tensor:
        wide = _relu6(self.bn1(self.conv_pw(hidden)))
        filtered = _relu6(self.bn2(self.conv_dw(wide)))
        narrow: Tensor = self.bn3(self.conv_pwl(filtered))
        return narrow + hidden if self._shortcut else narrow
