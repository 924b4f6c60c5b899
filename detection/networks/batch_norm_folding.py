"""Folds batch norms into the convolutions before them, for networks that only score.

At evaluation a batch norm is a fixed scale and offset of every channel, so the convolution can do
its work: `w' = w g / sqrt(v + e)`, `b' = (b - m) g / sqrt(v + e) + c` with the running mean m and
variance v, the gain g and the offset c (Jacob et al., CVPR 2018, section 3.2).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def fold_batch_norms(network: nn.Module) -> None:
    """Fold, in place, every batch norm that is known to act on a convolution's output and no more.

    Known are neighbours in an `nn.Sequential`, `bnN` after `convN`, as residual blocks name them
    here and in torchvision, and what a module states in `norms`, by the names of its convolutions.
    `network` must be in evaluation mode and is of no use for training afterwards; its state dict no
    longer loads weights as they were trained.
    """
    for module in network.modules():
        children = dict(module.named_children())
        stated: Mapping[str, str] = getattr(module, "norms", {})
        for first, second in (*_neighbours(module, list(children)), *stated.items()):
            convolution, norm = children[first], children.get(second)
            # Unless it is stated, a convolution of another class may do more than convolve.
            if type(convolution) is not nn.Conv2d and first not in stated:
                continue
            if isinstance(convolution, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())


def _neighbours(module: nn.Module, names: list[str]) -> Iterator[tuple[str, str]]:
    if isinstance(module, nn.Sequential):
        yield from pairwise(names)
    else:
        yield from (
            (name, name.replace("conv", "bn", 1)) for name in names if name.startswith("conv")
        )
