"""Augmentation: drawn once, applied to both sides of a pair alike.

`sample_crop` fixes every random choice for one crop, `AugmentedCrop.apply` is a pure function of
the image, so that a photograph and its reconstruction meet the same resize, codec, noise and crop.
Two codecs can act: the *first* one stands for the file that the image was uploaded as (its 8-pixel
grid is the image's own), the *last* one for what the web does to it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from training.data.codecs import Codec

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: JPEG's minimum coded unit with 4:2:0 chroma: regions start on this grid.
GRID = 16
FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationConfig:
    """Probabilities and ranges of the augmentation; ranges are inclusive."""

    crop: int = 96
    margin: int = 24
    resize_p: float = 0.5
    scale: tuple[float, float] = (0.5, 1.6)
    blur_p: float = 0.1
    blur_sigma: tuple[float, float] = (0.2, 1.2)
    noise_p: float = 0.15
    noise_sigma: tuple[float, float] = (0.5, 6.0)
    colour_p: float = 0.3
    colour_range: float = 0.2
    jpeg_p: float = 0.45
    jpeg_quality: tuple[int, int] = (35, 98)
    webp_p: float = 0.15
    webp_quality: tuple[int, int] = (40, 95)
    cutout_p: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentedCrop:
    """Every choice of one augmented crop, in the order in which they act."""

    top: int
    left: int
    height: int
    width: int
    first: Codec | None
    scale: float
    resample: Image.Resampling
    blur_sigma: float
    gain: tuple[float, float, float]
    offset: float
    noise_sigma: float
    noise_seed: int
    last: Codec | None
    crop: int
    crop_at: tuple[float, float]
    turns: int
    flip: bool
    cutout: tuple[float, float, float] | None

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut and augment RGB uint8 (H, W, 3) to uint8 (crop, crop, 3)."""
        rows = slice(self.top, self.top + self.height)
        region = self.distort(image[rows, self.left : self.left + self.width])
        top, left = (
            int(at * (side - self.crop))
            for at, side in zip(self.crop_at, region.shape[:2], strict=True)
        )
        square = region[top : top + self.crop, left : left + self.crop]
        square = np.rot90(square, self.turns)
        square = square[:, ::-1] if self.flip else square
        square = np.array(square, order="C")
        if self.cutout is not None:
            y, x, size = (int(share * self.crop) for share in self.cutout)
            square[y : y + size, x : x + size] = 128
        return square

    def distort(self, region: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply everything but cutting, turning and flipping to RGB uint8 (h, w, 3)."""
        if self.first is not None:
            region = self.first.apply(np.ascontiguousarray(region))
        region = self._resize(region)
        region = self._photometric(region)
        return region if self.last is None else self.last.apply(region)

    def _resize(self, region: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = (max(self.crop, round(side * self.scale)) for side in region.shape[:2])
        if (height, width) == region.shape[:2]:
            return region
        resized = Image.fromarray(region).resize((width, height), self.resample)
        return np.asarray(resized)

    def _photometric(self, region: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.blur_sigma:
            blurred = Image.fromarray(region).filter(ImageFilter.GaussianBlur(self.blur_sigma))
            region = np.asarray(blurred)
        if self.gain == (1.0, 1.0, 1.0) and not self.offset and not self.noise_sigma:
            return np.ascontiguousarray(region)
        values = region.astype(np.float32) * np.asarray(self.gain, np.float32) + self.offset
        if self.noise_sigma:
            noise = np.random.default_rng(self.noise_seed).standard_normal(region.shape, np.float32)
            values += noise * self.noise_sigma
        rounded: NDArray[np.uint8] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
        return rounded


def sample_crop(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    augmentation: AugmentationConfig,
    *,
    first: Codec | None = None,
) -> AugmentedCrop:
    """Draw one view of an image of `shape` (H, W, ...).

    The scale is raised where the image is too small to fill the crop.
    """
    scale = 1.0
    if rng.random() < augmentation.resize_p:
        low, high = np.log(augmentation.scale)
        scale = float(np.exp(rng.uniform(low, high)))
    scale = max(scale, augmentation.crop / min(shape[:2]))
    need = int(np.ceil((augmentation.crop + augmentation.margin) / scale / GRID)) * GRID
    height, width = (min(need, side) for side in shape[:2])
    top, left = (
        int(rng.integers(0, (side - size) // GRID + 1)) * GRID
        for side, size in zip(shape[:2], (height, width), strict=True)
    )
    coloured = rng.random() < augmentation.colour_p
    swing = augmentation.colour_range
    base = rng.uniform(1 - swing, 1 + swing) if coloured else 1.0
    gain = tuple(float(base * rng.uniform(0.95, 1.05)) if coloured else 1.0 for _ in range(3))
    return AugmentedCrop(
        top=top,
        left=left,
        height=height,
        width=width,
        first=first,
        scale=scale,
        resample=FILTERS[int(rng.integers(len(FILTERS)))],
        blur_sigma=_maybe(rng, augmentation.blur_p, augmentation.blur_sigma),
        gain=(gain[0], gain[1], gain[2]),
        offset=float(rng.uniform(-20, 20)) if coloured else 0.0,
        noise_sigma=_maybe(rng, augmentation.noise_p, augmentation.noise_sigma),
        noise_seed=int(rng.integers(2**31)),
        last=_last_codec(rng, augmentation),
        crop=augmentation.crop,
        crop_at=(float(rng.random()), float(rng.random())),
        turns=int(rng.integers(4)),
        flip=bool(rng.random() < 0.5),
        cutout=_cutout(rng, augmentation),
    )


def _maybe(rng: np.random.Generator, chance: float, limits: tuple[float, float]) -> float:
    return float(rng.uniform(*limits)) if rng.random() < chance else 0.0


def _last_codec(rng: np.random.Generator, augmentation: AugmentationConfig) -> Codec | None:
    pick = rng.random()
    if pick < augmentation.jpeg_p:
        quality = int(rng.integers(augmentation.jpeg_quality[0], augmentation.jpeg_quality[1] + 1))
        return Codec("JPEG", quality, "4:2:0" if rng.random() < 0.75 else "4:4:4")
    if pick < augmentation.jpeg_p + augmentation.webp_p:
        low, high = augmentation.webp_quality
        return Codec("WEBP", int(rng.integers(low, high + 1)))
    return None


def _cutout(
    rng: np.random.Generator, augmentation: AugmentationConfig
) -> tuple[float, float, float] | None:
    if rng.random() >= augmentation.cutout_p:
        return None
    return float(rng.uniform(0, 0.7)), float(rng.uniform(0, 0.7)), float(rng.uniform(0.1, 0.3))
