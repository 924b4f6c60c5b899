"""What the retraining demo uploads: photographs and renderings, and fakes of an unknown decoder.

The unknown family is made on the spot and at no cost: the bundle's own generator, its decoder's
kernels shaken by seeded noise. No training has met that decoder, yet its pictures are an
autoencoder's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from detection.errors import SettingsError
from training.bundles.challenger import lare_of
from training.data.diffusion_sampling import PartialNoise
from training.data.manifest import REAL, load_manifest
from training.data.shaders import renderings
from worker.demo.photographs import PHOTOGRAPHS
from worker.scoring.file_scoring import find_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle import Bundle

SIDE = 256
#: How far the decoder's kernels are shaken, as a share of their spread, and by which noise.
SHAKEN, SHAKING_SEED = 0.15, 7
AT_ONCE = 8
#: Renderings under other seeds: those that the fakes start from, and those of the live uploads.
FAKE_SEED, LIVE_SEED, LIVE_FAKE_SEED = 1, 2, 3
#: More of each than any demo uploads one by one.
LIVE_EACH = 500
CAMERA, FEED = "camera", "feed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioUpload:
    """A PNG or an own file, what it is, and the source that it is uploaded by."""

    name: str
    data: bytes
    generated: bool

    @property
    def source(self) -> str:
        """Photographs come from a trusted source; what is generated comes from the feed."""
        return FEED if self.generated else CAMERA


def own(folder: Path) -> list[ScenarioUpload]:
    """Read a folder of one's own: by its manifest.tsv, or every image file as a photograph."""
    if (folder / "manifest.tsv").is_file():
        listed = [(entry.path, entry.label != REAL) for entry in load_manifest(folder)]
    else:
        listed = [(path, False) for path in find_files([folder])]
    if not listed:
        raise SettingsError(f"no image files in {folder}")
    return [
        ScenarioUpload(
            name=f"own/{number:06d}{path.suffix.lower()}", data=path.read_bytes(), generated=fake
        )
        for number, (path, fake) in enumerate(listed)
        if path.is_file()
    ]


def photographs_and_renderings(count: int) -> Iterator[ScenarioUpload]:
    """Make `count` reals: squares cut from the wheels' photographs, then renderings."""
    made = 0
    for photograph in PHOTOGRAPHS:
        with Image.open(photograph.path) as image:
            pixels = np.array(image.convert("RGB"))
        height, width = (length - SIDE for length in pixels.shape[:2])
        if made < count and min(height, width) >= 0:
            square = pixels[height // 2 :, width // 2 :][:SIDE, :SIDE]
            yield _png(f"photograph/{photograph.path.stem}", square, generated=False)
            made += 1
    for name, pixels in renderings(count - made, side=SIDE):
        yield _png(f"rendering/{name}", pixels, generated=False)


def fakes(bundle: Bundle, count: int, *, seed: int = FAKE_SEED) -> Iterator[ScenarioUpload]:
    """Make `count` images with the unknown decoder, from renderings that are nowhere else."""
    lare = lare_of(bundle)
    if lare is None:
        raise SettingsError(f"bundle {bundle.manifest.name} holds no generator to make images with")
    generator = lare.generator
    shaking = torch.Generator().manual_seed(SHAKING_SEED)
    with torch.no_grad():
        for parameter in generator.autoencoder.decoder.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=shaking)
                parameter.add_(SHAKEN * parameter.std() * noise)
    aligner = PartialNoise("shaken", generator)
    waiting: list[tuple[str, NDArray[np.uint8]]] = []
    for name, pixels in renderings(count, seed=seed, side=SIDE):
        waiting.append((name, pixels))
        if len(waiting) == AT_ONCE:
            yield from _fakes(aligner, waiting)
            waiting = []
    if waiting:
        yield from _fakes(aligner, waiting)


def live(bundle: Bundle) -> Iterator[ScenarioUpload]:
    """Make renderings and fakes in turn, none of which was uploaded in the past."""
    made = fakes(bundle, LIVE_EACH, seed=LIVE_FAKE_SEED)
    for (name, pixels), fake in zip(
        renderings(LIVE_EACH, seed=LIVE_SEED, side=SIDE), made, strict=True
    ):
        yield _png(f"rendering/{name}", pixels, generated=False)
        yield fake


def _fakes(
    aligner: PartialNoise, part: list[tuple[str, NDArray[np.uint8]]]
) -> Iterator[ScenarioUpload]:
    made = aligner.reconstruct([pixels for _, pixels in part])
    for (name, _), pixels in zip(part, made, strict=True):
        yield _png(f"generated/{name}", pixels, generated=True)


def _png(name: str, pixels: NDArray[np.uint8], *, generated: bool) -> ScenarioUpload:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ScenarioUpload(name=f"{name}.png", data=buffer.getvalue(), generated=generated)
