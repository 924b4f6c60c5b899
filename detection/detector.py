"""The detector: decoded images in, scores out, with one bundle on one device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detection.aligned import AlignedConfig, AlignedNet, aggregate, cut_tiles, tile_origins
from detection.applicability import inapplicable_reason, novelty_reason
from detection.backbone import Backbone, to_views, whole_view
from detection.bundle import Arithmetic, Bundle, BundleError, load_bundle
from detection.bundle_generator import load_lare
from detection.egre import Egre
from detection.errors import PermanentError, UnlatentError
from detection.fusion import accusation_distance, assign_label
from detection.lare import center_crop_resize, lare_map, to_minus_one_one
from detection.networks.batch_norm_folding import fold_batch_norms
from detection.reencoding import mild_copies
from detection.score import Label, Score, TileLogit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_Network = TypeVar("_Network", bound=nn.Module)

#: Smallest side of an image that can be scored, in pixels.
MIN_SIDE = 64
#: Tiles and views that pass through a network at once: bounds memory, not results. A CPU's caches
#: hold the activations of few.
CHUNK, CPU_CHUNK = 32, 8
GOLDEN_TOLERANCE = 2e-3


class ImageTooSmall(PermanentError):
    """The image is smaller than the detector's 64 pixels a side."""

    reason = "too_small"


class NotFinite(UnlatentError):
    """A branch gives no number for the image: the arithmetic overflowed, or the device is broken.

    No `PermanentError`: whoever scores first has to ask whether the golden image still scores.
    """


class Detector:
    """Scores RGB images with one bundle; not thread-safe, so one thread owns it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        generators: Path | None = None,
    ) -> None:
        """Build the networks of a verified bundle on `device`.

        `generators` holds the folders of presets that a bundle may name instead of carrying a
        generator; without it they come from the hub's cache on this machine.
        """
        manifest = bundle.manifest
        self.bundle = bundle
        self.device = device
        self._chunk = CPU_CHUNK if torch.device(device).type == "cpu" else CHUNK
        self._egre: Egre | None = None
        self._aligned: AlignedNet | None = None
        if manifest.egre and (lare := load_lare(bundle, generators=generators)):
            self._generator = self._place(lare.generator)
            self._noises = lare.noises.to(device)
            self._egre = self._place(_load(Egre(manifest.egre), bundle.path("egre.safetensors")))
        if manifest.aligned:
            network = AlignedNet(manifest.aligned)
            self._aligned = self._place(_load(network, bundle.path("aligned.safetensors")))
        self._backbone: Backbone | None = None
        if manifest.backbone:
            backbone = Backbone(manifest.backbone)
            self._backbone = self._place(_load(backbone, bundle.path("backbone.safetensors")))

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path = "small",
        *,
        device: str = "cpu",
        generators: Path | None = None,
    ) -> Detector:
        """Verify and load a bundle by embedded name or folder; raises `BundleError`."""
        bundle = load_bundle(name_or_folder)
        return cls(bundle, device=device, generators=generators)

    @property
    def model_version(self) -> str:
        """Digest of the bundle."""
        return self.bundle.model_version

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Score RGB images, each uint8 (H, W, 3), of any sizes from 64 pixels a side.

        Raises `ImageTooSmall` naming the size, `ValueError` for another shape or dtype, and
        `NotFinite` rather than label what is no number.
        """
        for image in images:
            _check(image)
        scores = self._score_once(images)
        scores = [self._apply_applicability(*pair) for pair in zip(images, scores, strict=True)]
        if not self.bundle.manifest.policy.steady:
            return scores
        return [self._require_stable_label(*pair) for pair in zip(images, scores, strict=True)]

    def golden(self) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Return the bundle's golden image (H, W, 3) and the branch logits it must get."""
        tensors = load_file(self.bundle.path("golden.safetensors"))
        image = tensors.pop("image").numpy()
        logits = {name.removeprefix("logit."): float(value) for name, value in tensors.items()}
        return image, logits

    @property
    def golden_tolerance(self) -> float:
        """By how much a golden logit may be off: bfloat16 is allowed thirty times as much."""
        return GOLDEN_TOLERANCE * (1 if self.arithmetic == "float32" else 30)

    @property
    def arithmetic(self) -> Arithmetic:
        """Arithmetic of the forward passes, on every device the one that the bundle states."""
        return self.bundle.manifest.arithmetic

    def self_check(self) -> None:
        """Score the golden image; raises `BundleError` when this machine computes otherwise."""
        image, expected = self.golden()
        found = self.score([image])[0].branches
        allowed = self.golden_tolerance
        for name, value in expected.items():
            if not abs(found[name] - value) <= allowed * max(1.0, abs(value)):
                raise BundleError(
                    f"the golden image of {self.bundle.manifest.name} gets {found[name]:.5f} from"
                    f" the {name} branch on {self.device} in {self.arithmetic}, not {value:.5f}"
                )

    def _score_once(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        if not images:
            return []
        branches: list[dict[str, float]] = [{} for _ in images]
        maps: list[NDArray[np.float32] | None] = [None] * len(images)
        tiles: list[tuple[TileLogit, ...]] = [()] * len(images)
        contributions: list[NDArray[np.float32] | None] = [None] * len(images)
        outside: list[str | None] = [None] * len(images)
        with torch.inference_mode():
            if self._egre is not None:
                for index, (logit, error) in enumerate(self._score_lare(images)):
                    branches[index]["lare"] = logit
                    maps[index] = error
            if self._aligned is not None:
                for index, (logit, read) in enumerate(self._score_aligned(images)):
                    branches[index]["aligned"] = logit
                    tiles[index] = read
            if self._backbone is not None:
                most = self._backbone.config.max_novelty
                for index, (logit, part, novelty) in enumerate(self._score_backbone(images)):
                    branches[index]["backbone"] = logit
                    contributions[index] = part
                    outside[index] = novelty_reason(novelty, most)
        seen = zip(branches, maps, tiles, contributions, outside, strict=True)
        return [self._verdict(*one) for one in seen]

    def _apply_applicability(self, image: NDArray[np.uint8], score: Score) -> Score:
        """Judge nothing that the thresholds do not hold for, whatever the score says of it.

        No evidence leaves the probability at the prior, or below where the score already is.
        """
        why = inapplicable_reason(image, self.bundle.manifest.aligned) or score.outside
        if why is None:
            return score
        probability = min(score.probability, score.prior)
        return replace(
            score, label=Label.UNSURE, probability=probability, distance=None, outside=why
        )

    def _require_stable_label(self, image: NDArray[np.uint8], score: Score) -> Score:
        if score.label is not Label.GENERATED:
            return score
        copies = self._score_once(mild_copies(image, min_side=MIN_SIDE))
        if all(copy.label is Label.GENERATED for copy in copies):
            return score
        weakest = min(copies, key=lambda copy: copy.probability)
        return replace(
            score,
            label=Label.UNSURE,
            probability=weakest.probability,
            distance=weakest.distance,
        )

    def _score_lare(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> list[tuple[float, NDArray[np.float32]]]:
        config = self.bundle.manifest.lare
        assert config is not None and self._egre is not None  # noqa: PT018, S101  # caller's branch
        results = []
        for start in range(0, len(images), self._chunk):
            chunk = images[start : start + self._chunk]
            stacked = [center_crop_resize(image, config.side) for image in chunk]
            views = self._move(to_minus_one_one(np.stack(stacked)))
            with self._autocast():
                maps = lare_map(self._generator, views, self._noises, config.step)
                logits = self._egre(views, maps).float()
            errors = maps.mean(dim=1).float().cpu().numpy()
            results += list(zip(logits.cpu().tolist(), errors, strict=True))
        return results

    def _score_aligned(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> list[tuple[float, tuple[TileLogit, ...]]]:
        config = self.bundle.manifest.aligned
        assert config is not None  # noqa: S101  # as above
        cut = [cut_tiles(image, config) for image in images]
        counts = [len(part) for part in cut]
        logits = self._tile_logits(torch.cat(cut))
        read = [
            _tiles(image, part.tolist(), config)
            for image, part in zip(images, logits.split(counts), strict=True)
        ]
        return list(zip(aggregate(logits, counts).tolist(), read, strict=True))

    def _score_backbone(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> list[tuple[float, NDArray[np.float32], float]]:
        assert self._backbone is not None  # noqa: S101  # as above
        results = []
        for start in range(0, len(images), self._chunk):
            chunk = images[start : start + self._chunk]
            stacked = [whole_view(image, self._backbone.config) for image in chunk]
            with self._autocast():
                seen = self._backbone(self._move(to_views(np.stack(stacked))))
            logits, parts, novelties = (one.cpu() for one in seen)
            results += list(zip(logits.tolist(), parts.numpy(), novelties.tolist(), strict=True))
        return results

    def _tile_logits(self, tiles: Tensor) -> Tensor:
        assert self._aligned is not None  # noqa: S101  # the callers' branch
        logits = []
        for chunk in tiles.split(self._chunk):
            with self._autocast():
                logits.append(self._aligned(self._move(chunk)).float().cpu())
        return torch.cat(logits)

    def _verdict(
        self,
        branches: dict[str, float],
        error_map: NDArray[np.float32] | None,
        tiles: tuple[TileLogit, ...],
        contributions: NDArray[np.float32] | None,
        outside: str | None,
    ) -> Score:
        manifest = self.bundle.manifest
        for name, value in branches.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"the {name} branch gives {value} on {self.device} in {self.arithmetic}"
                    " (half precision may overflow: float32 does not)"
                )
        logit = manifest.fusion.logit(branches)
        points, policy = manifest.operating_points, manifest.policy
        label, point = assign_label(logit, points, policy)
        probability = manifest.fusion.probability(logit, policy.prior)
        return Score(
            probability=probability,
            distance=accusation_distance(probability, manifest.fusion, points, policy),
            label=label,
            branches=branches,
            decided_by=manifest.fusion.decided_by(branches, generated=label is not Label.REAL),
            operating_point=point.name,
            prior=policy.prior,
            error_map=error_map,
            tiles=tiles,
            contributions=contributions,
            outside=outside,
        )

    def _place(self, network: _Network) -> _Network:
        network.eval().requires_grad_(False)
        fold_batch_norms(network)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
        return network

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.arithmetic == "bfloat16")


def _load(network: _Network, file: Path) -> _Network:
    weights = {name: value.float() for name, value in load_file(file).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(
            f"{file} does not fit the architecture in bundle.json: {error}"
        ) from error
    return network


def _tiles(
    image: NDArray[np.uint8], logits: Sequence[float], config: AlignedConfig
) -> tuple[TileLogit, ...]:
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


def _check(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageTooSmall(f"the image is {width} x {height} pixels: {MIN_SIDE} a side are needed")
