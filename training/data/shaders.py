"""Procedural, shader-like images made on the spot: reals for a site that has no photographs.

Aligned training works on shader renderings too (arXiv 2410.11835, section 5): what the network must
learn is the decoder's trace, not the content. Every kind is a pure function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.data.manifest import REAL, Entry
from training.data.originals import lossless
from training.data.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from training.data.originals import Original

    Pixels = NDArray[np.uint8]
    Field = NDArray[np.float64]
    Rng = np.random.Generator

#: Set name, and source in a data set, of renderings.
SHADERS = "shaders"
OCTAVES = 6


def clouds(rng: Rng, height: int, width: int) -> Field:
    """Sum of smooth noises of falling amplitude (fractional Brownian motion), per channel."""
    total = np.zeros((height, width, 3))
    roughness = rng.uniform(0.4, 0.7)
    for octave in range(OCTAVES):
        total += roughness**octave * _smooth_noise(rng, height, width, 3 * 2**octave, 3)
    return total


def cells(rng: Rng, height: int, width: int) -> Field:
    """Cells around random points, shaded by the distance to the nearest and the second nearest."""
    points = rng.uniform(0, 1, (int(rng.integers(12, 40)), 2)) * (height, width)
    y, x = np.mgrid[0:height, 0:width]
    squared = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    nearest = np.argmin(squared, axis=2)
    ordered = np.sqrt(np.partition(squared, 1, axis=2)[..., :2])
    edge = np.clip((ordered[..., 1] - ordered[..., 0]) / (0.02 * (height + width)), 0, 1)
    colours = rng.uniform(0, 1, (len(points), 3))
    shade = 1 - ordered[..., :1] / ordered[..., :1].max()
    shaded: Field = colours[nearest] * edge[..., None] * shade
    return shaded


def waves(rng: Rng, height: int, width: int) -> Field:
    """Sines of one another's phases: interference, bent by noise."""
    y, x = np.mgrid[0:height, 0:width] / (height + width)
    bend = _smooth_noise(rng, height, width, 4, 1)[..., 0] * rng.uniform(0, 6)
    layers = []
    for _ in range(3):
        angle, pitch = rng.uniform(0, np.pi), np.exp(rng.uniform(2.5, 5.0))
        layers.append(np.sin(pitch * (np.cos(angle) * x + np.sin(angle) * y) + bend))
    mixed: Field = np.stack(layers, axis=-1) @ rng.uniform(-1, 1, (3, 3))
    return mixed


def shapes(rng: Rng, height: int, width: int) -> Field:
    """Overlapping half-transparent discs and boxes with sharp edges on a slope of colour."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    slope = (x + y)[..., None] * rng.uniform(-0.5, 0.5, 3)
    canvas: Field = rng.uniform(0, 1, 3) + slope
    for _ in range(int(rng.integers(10, 30))):
        down, right, size = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.02, 0.25)
        box = np.maximum(abs(y - down), abs(x - right))
        gap = box if rng.random() < 0.5 else np.hypot(y - down, x - right)
        inside = (gap < size)[..., None] * rng.uniform(0.4, 1.0)
        canvas = canvas * (1 - inside) + rng.uniform(0, 1, 3) * inside
    return canvas


def weave(rng: Rng, height: int, width: int) -> Field:
    """A woven texture: fine threads under slowly changing light."""
    y, x = np.mgrid[0:height, 0:width]
    pitch = rng.uniform(3, 9, 2)
    threads = np.abs(np.sin(np.pi * y / pitch[0])) * np.abs(np.sin(np.pi * x / pitch[1]))
    light = _smooth_noise(rng, height, width, 3, 3)
    woven: Field = threads[..., None] * (0.6 + 0.4 * light) * rng.uniform(0.3, 1.0, 3)
    return woven


KINDS: dict[str, Callable[[Rng, int, int], Field]] = {
    "clouds": clouds,
    "cells": cells,
    "waves": waves,
    "shapes": shapes,
    "weave": weave,
}


def render(kind: str, seed: int, *, height: int = 256, width: int = 256) -> Pixels:
    """Render one image, RGB uint8 (height, width, 3), stretched to the full range, with grain."""
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    field = KINDS[kind](rng, height, width)
    low, high = np.quantile(field, [0.005, 0.995])
    values = (field - low) / max(high - low, 1e-6) * rng.uniform(140, 250) + rng.uniform(0, 30)
    values += rng.normal(0, rng.uniform(0.5, 4.0), values.shape)
    rendered: Pixels = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return rendered


@dataclass(frozen=True, slots=True)
class Rendering:
    """One image of a series: its key is reused by no other, whatever the seed of the series."""

    kind: str
    seed: int
    index: int

    @property
    def key(self) -> str:
        """Name the image."""
        return f"shader-{self.kind}-{self.seed}-{self.index}"

    def pixels(self, side: int = 256) -> Pixels:
        """Render it, RGB uint8 (side, side, 3)."""
        return render(self.kind, self.seed * 1_000_003 + self.index, height=side, width=side)

    def read(self) -> Original:
        """Render it as a data set's original: real, of the training side, in a group of its own."""
        return lossless(self.pixels(), key=self.key, group=self.key, source=SHADERS)


def series(count: int, *, seed: int = 0) -> list[Rendering]:
    """List `count` renderings, the kinds in turn."""
    kinds = sorted(KINDS)
    return [Rendering(kinds[index % len(kinds)], seed, index) for index in range(count)]


def renderings(count: int, *, seed: int = 0, side: int = 256) -> Iterator[tuple[str, Pixels]]:
    """Render a series: keys and images, RGB uint8 (side, side, 3)."""
    for rendering in series(count, seed=seed):
        yield rendering.key, rendering.pixels(side)


def shader_samples(count: int) -> list[Sample]:
    """Render `count` images as real samples of the set `SHADERS`, each a group of its own."""
    return [
        Sample(
            Entry(path=Path(name), label=REAL, set=SHADERS, family="", group=name),
            pixels,
            lossy=False,
        )
        for name, pixels in renderings(count)
    ]


def _smooth_noise(rng: Rng, height: int, width: int, knots: int, channels: int) -> Field:
    """Noise of `knots` knots a side, interpolated: float64 (height, width, channels)."""
    planes = []
    for _ in range(channels):
        grid = Image.fromarray(rng.uniform(-1, 1, (knots, knots)).astype(np.float32))
        planes.append(np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)))
    return np.stack(planes, axis=-1).astype(np.float64)
