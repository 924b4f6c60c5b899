"""The feature space of a bundle: what one of its own branches sees, for distances between sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file

from detection.aligned import AlignedNet, cut_tiles
from detection.backbone import Backbone, to_views, whole_view
from detection.bundle import Bundle, BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor


class BundleFeatures:
    """Features of a bundle's aligned branch, averaged over tiles, or else of its backbone.

    Raises `BundleError` for a bundle with neither.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        manifest = bundle.manifest
        self._network: AlignedNet | Backbone
        if (aligned := manifest.aligned) is not None:
            branch, self._network = "aligned", AlignedNet(aligned)
            self._read: Callable[[NDArray[np.uint8]], Tensor] = lambda image: cut_tiles(
                image, aligned
            )
        elif (backbone := manifest.backbone) is not None:
            branch, self._network = "backbone", Backbone(backbone)
            self._read = lambda image: to_views(np.stack([whole_view(image, backbone)]))
        else:
            raise BundleError(
                f"{bundle.folder} has neither an aligned branch nor a backbone: no feature space"
            )
        weights = load_file(bundle.path(f"{branch}.safetensors"))
        self._network.load_state_dict({name: value.float() for name, value in weights.items()})
        self._network.eval().requires_grad_(requires_grad=False).to(device)
        self._device = device
        self.name = f"{branch} branch of {manifest.name} {bundle.model_version[:12]}"

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Map RGB images, each uint8 (H, W, 3), to features (N, D)."""
        with torch.inference_mode():
            rows = [
                self._network.features(self._read(image).to(self._device)).mean(dim=0).cpu().numpy()
                for image in images
            ]
        return np.array(rows, dtype=np.float64)
