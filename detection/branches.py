"""The branches of a bundle on one device: each reads a logit from pictures, and evidence for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detection.aligned import AlignedNet, aggregate, cut_tiles, tile_origins
from detection.applicability import novelty_reason
from detection.backbone import Backbone, to_views, whole_view
from detection.bundle import Arithmetic, Bundle, BundleError
from detection.bundle_generator import load_lare
from detection.egre import Egre
from detection.lare import center_crop_resize, lare_map, to_minus_one_one
from detection.networks.batch_norm_folding import fold_batch_norms
from detection.score import TileLogit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle_generator import LareComponents
    from detection.networks.branch_configs import AlignedConfig

    Pixels = NDArray[np.uint8]

_Network = TypeVar("_Network", bound=nn.Module)

#: Tiles and views that pass through a network at once: bounds memory, not results. A CPU's caches
#: hold the activations of few.
CHUNK, CPU_CHUNK = 32, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a branch reads from one image: its logit, and what of it the branch can show.

    `error_map` is float32 (h, w), `tiles` say where they lie, `contributions` are float32 (h, w).
    `outside` says why the image is too unlike what the branch learnt from, else None.
    """

    logit: float
    error_map: NDArray[np.float32] | None = None
    tiles: tuple[TileLogit, ...] = ()
    contributions: NDArray[np.float32] | None = None
    outside: str | None = None


class Branch(Protocol):
    """The interface of a branch; a detector has one or more."""

    def read(self, images: Sequence[Pixels]) -> list[Reading]:
        """Read N images, each RGB uint8 (H, W, 3), without gradients."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where networks compute, and in which arithmetic."""

    device: str
    arithmetic: Arithmetic

    def place(self, network: _Network) -> _Network:
        """Make a network ready to score, and move it there."""
        network.eval().requires_grad_(False)
        fold_batch_norms(network)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
        return network

    def move(self, tensor: Tensor) -> Tensor:
        """Move a batch (B, C, H, W) there."""
        return tensor.to(self.device, memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        """Return the context of forward passes in the arithmetic."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.arithmetic == "bfloat16")

    @property
    def chunk(self) -> int:
        """The number of views or tiles in one pass."""
        return CPU_CHUNK if torch.device(self.device).type == "cpu" else CHUNK

    def chunks(self, images: Sequence[Pixels]) -> Iterator[Sequence[Pixels]]:
        """Yield images by as many as pass at once."""
        for start in range(0, len(images), self.chunk):
            yield images[start : start + self.chunk]


class LareBranch:
    """LaRE's error map by the generator, and the network that reads it (`detection.egre`)."""

    def __init__(self, lare: LareComponents, network: Egre, placement: Placement) -> None:
        self.generator = placement.place(lare.generator)
        self.noises = lare.noises.to(placement.device)
        self.network = placement.place(network)
        self._config, self._placement = lare.config, placement

    def read(self, images: Sequence[Pixels]) -> list[Reading]:
        """Read images and their error maps."""
        readings = []
        for chunk in self._placement.chunks(images):
            stacked = [center_crop_resize(image, self._config.side) for image in chunk]
            views = self._placement.move(to_minus_one_one(np.stack(stacked)))
            with self._placement.autocast():
                maps = lare_map(self.generator, views, self.noises, self._config.step)
                logits = self.network(views, maps).float()
            errors = maps.mean(dim=1).float().cpu().numpy()
            for logit, error in zip(logits.cpu().tolist(), errors, strict=True):
                readings.append(Reading(logit=logit, error_map=error))
        return readings


class AlignedBranch:
    """The network that reads tiles at native resolution (`detection.aligned`)."""

    def __init__(self, network: AlignedNet, config: AlignedConfig, placement: Placement) -> None:
        self.network = placement.place(network)
        self._config, self._placement = config, placement

    def read(self, images: Sequence[Pixels]) -> list[Reading]:
        """Read images; the tiles of all of them pass together."""
        cut = [cut_tiles(image, self._config) for image in images]
        counts = [len(part) for part in cut]
        logits = self._tile_logits(torch.cat(cut))
        of_images = aggregate(logits, counts).tolist()
        return [
            Reading(logit=logit, tiles=_tiles(image, part.tolist(), self._config))
            for logit, image, part in zip(of_images, images, logits.split(counts), strict=True)
        ]

    def _tile_logits(self, tiles: Tensor) -> Tensor:
        logits = []
        for chunk in tiles.split(self._placement.chunk):
            with self._placement.autocast():
                logits.append(self.network(self._placement.move(chunk)).float().cpu())
        return torch.cat(logits)


class BackboneBranch:
    """The head on a frozen backbone, which reads the whole view (`detection.backbone`)."""

    def __init__(self, network: Backbone, placement: Placement) -> None:
        self.network = placement.place(network)
        self._placement = placement

    def read(self, images: Sequence[Pixels]) -> list[Reading]:
        """Read images, and say which are too novel."""
        config = self.network.config
        readings = []
        for chunk in self._placement.chunks(images):
            stacked = [whole_view(image, config) for image in chunk]
            with self._placement.autocast():
                seen = self.network(self._placement.move(to_views(np.stack(stacked))))
            logits, parts, novelties = (one.cpu() for one in seen)
            for logit, part, novelty in zip(
                logits.tolist(), parts.numpy(), novelties.tolist(), strict=True
            ):
                outside = novelty_reason(novelty, config.max_novelty)
                readings.append(Reading(logit=logit, contributions=part, outside=outside))
        return readings


def load_branches(
    bundle: Bundle, *, device: str = "cpu", generators: Path | None = None
) -> dict[str, Branch]:
    """Build the branches of a verified bundle, by name; `generators` as in `detection.detector`.

    Raises `BundleError` for weights that do not fit, and as `load_lare` does.
    """
    manifest = bundle.manifest
    placement = Placement(device=device, arithmetic=manifest.arithmetic)
    branches: dict[str, Branch] = {}
    if manifest.egre and (lare := load_lare(bundle, generators=generators)):
        egre = _load(Egre(manifest.egre), bundle.path("egre.safetensors"))
        branches["lare"] = LareBranch(lare, egre, placement)
    if manifest.aligned:
        aligned = _load(AlignedNet(manifest.aligned), bundle.path("aligned.safetensors"))
        branches["aligned"] = AlignedBranch(aligned, manifest.aligned, placement)
    if manifest.backbone:
        backbone = _load(Backbone(manifest.backbone), bundle.path("backbone.safetensors"))
        branches["backbone"] = BackboneBranch(backbone, placement)
    return branches


def _load(network: _Network, file: Path) -> _Network:
    weights = {name: value.float() for name, value in load_file(file).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(
            f"{file} does not fit the architecture in bundle.json: {error}"
        ) from error
    return network


def _tiles(image: Pixels, logits: Sequence[float], config: AlignedConfig) -> tuple[TileLogit, ...]:
    """Say where on the image each tile lies; what was mirrored to fill one is no part of it."""
    height, width = image.shape[:2]
    origins = tile_origins(height, width, tile=config.tile, max_tiles=config.max_tiles)
    return tuple(
        TileLogit(
            top=top,
            left=left,
            height=min(config.tile, height),
            width=min(config.tile, width),
            logit=logit,
        )
        for (top, left), logit in zip(origins, logits, strict=True)
    )
