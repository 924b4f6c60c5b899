"""The feature space of a bundle: what its own aligned branch sees, for distances between sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file

from detection.aligned import AlignedNet, cut_tiles
from detection.bundle import Bundle, BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class BundleFeatures:
    """Pooled features of a bundle's aligned branch, averaged over an image's tiles."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu") -> None:
        config = bundle.manifest.aligned
        if config is None:
            raise BundleError(f"{bundle.folder} has no aligned branch: it has no feature space")
        weights = load_file(bundle.path("aligned.safetensors"))
        self._config, self._device = config, device
        self._network = AlignedNet(config)
        self._network.load_state_dict({name: value.float() for name, value in weights.items()})
        self._network.eval().requires_grad_(requires_grad=False).to(device)
        self.name = f"aligned branch of {bundle.manifest.name} {bundle.model_version[:12]}"

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Map RGB images, each uint8 (H, W, 3), to features (N, D)."""
        rows = []
        with torch.inference_mode():
            for image in images:
                tiles = cut_tiles(image, self._config).to(self._device)
                rows.append(self._network.features(tiles).mean(dim=0).cpu().numpy())
        return np.array(rows, dtype=np.float64)
