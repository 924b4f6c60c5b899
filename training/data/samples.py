"""Decoded training images in memory, and the balanced, codec-harmonised draws made from them.

The data's traps are file-level: most generated files are JPEG quality 75 and most photographs 90 to
97. So an unpaired photograph never enters as it is: it is re-encoded the way the generated files
were (or shrunk first, which wipes the traces of its own JPEG), and a lossless generated file too.
Only pairs, whose two sides share a history, enter untouched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from PIL import Image

from detection.intake.decode import IntakeLimits, decode
from detection.intake.errors import ImageRejected
from training.data.codecs import Codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Entry

#: Files of a data set are one's own: the service's limits, but for the size of the picture.
LIMITS = IntakeLimits(
    max_bytes=2**30,
    max_pixels=100_000_000,
    max_frames=2000,
    max_metadata_bytes=8 * 2**20,
    min_side=1,
)
#: How diffusers' users save by default (Pillow's own default): the codec of most generated files.
GENERATOR_CODEC = Codec("JPEG", 75, "4:2:0")


@dataclass(slots=True)
class Sample:
    """One image in memory; `lossy` says that its file was already a generator's JPEG.

    `shrunk` holds smaller copies of a photograph, `reconstructions` its aligned partners by the
    aligner's name.
    """

    entry: Entry
    pixels: NDArray[np.uint8]
    lossy: bool
    shrunk: list[NDArray[np.uint8]] = field(default_factory=list)
    reconstructions: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


def read_pixels(entry: Entry) -> tuple[NDArray[np.uint8], str]:
    """Decode one entry to RGB uint8 (H, W, 3), as it is served, and its file format.

    Raises `ImageRejected` and `OSError`.
    """
    return as_served(entry.path.read_bytes())


def as_served(data: bytes) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels of a file, RGB uint8 (H, W, 3), and its format; raises `ImageRejected`.

    The service's own decoder, so that a detector is trained and measured on the pixels that it will
    score; of an animation it is the frame that is shown longest.
    """
    decoded = decode(data, limits=LIMITS)
    return decoded.pixels, decoded.format


def load_samples(entries: Iterable[Entry], *, seed: int = 0) -> list[Sample]:
    """Decode entries into memory, with shrunk copies of photographs."""
    samples = []
    for index, entry in enumerate(entries):
        pixels, kind = read_pixels(entry)
        sample = Sample(entry=entry, pixels=pixels, lossy=entry.generated and kind == "JPEG")
        if not entry.generated:
            rng = np.random.default_rng([seed, index])
            sample.shrunk = [shrink(pixels, float(rng.uniform(0.5, 0.95))) for _ in range(2)]
        samples.append(sample)
    return samples


def shrink(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Scale RGB uint8 (H, W, 3) down by `scale`, but not under 128 pixels a side."""
    scale = min(1.0, max(scale, 128 / min(pixels.shape[:2])))
    height, width = (round(side * scale) for side in pixels.shape[:2])
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def upload_codec(rng: np.random.Generator) -> Codec:
    """Draw the codec that a lossless image is uploaded in: mostly the generators' own."""
    if rng.random() < 0.7:
        return GENERATOR_CODEC
    return Codec("JPEG", int(rng.integers(60, 96)), "4:2:0" if rng.random() < 0.75 else "4:4:4")


class HasEntry(Protocol):
    """Anything that knows which image of the manifest it is or comes from."""

    @property
    def entry(self) -> Entry:
        """The image."""


Item = TypeVar("Item", bound=HasEntry)


class BalancedSampler(Generic[Item]):
    """Picks items so that no large set drowns a small one: weight of a set is sqrt(size).

    Generated sets are first balanced over their autoencoder families in the same way.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        families: dict[str, dict[str, list[Item]]] = {}
        for item in items:
            sets = families.setdefault(item.entry.family, {})
            sets.setdefault(item.entry.set, []).append(item)
        shares = _shares([sum(map(len, sets.values())) for sets in families.values()])
        self._sets: list[list[Item]] = []
        weights: list[float] = []
        for share, sets in zip(shares, families.values(), strict=True):
            for inner, members in zip(
                _shares([len(members) for members in sets.values()]), sets.values(), strict=True
            ):
                self._sets.append(members)
                weights.append(float(share * inner))
        self._edges = np.cumsum(weights)

    def pick(self, rng: np.random.Generator) -> Item:
        """Draw one item."""
        index = int(np.searchsorted(self._edges, rng.random() * self._edges[-1], side="right"))
        members = self._sets[min(index, len(self._sets) - 1)]
        return members[int(rng.integers(len(members)))]


def _shares(sizes: Sequence[int]) -> NDArray[np.float64]:
    roots = np.sqrt(np.asarray(sizes, dtype=np.float64))
    shares: NDArray[np.float64] = roots / roots.sum()
    return shares


#: The detector refuses smaller images.
MIN_SIDE = 64


@dataclass(frozen=True, slots=True)
class ImageInventory:
    """What a folder holds: readable entries, their sha256 by path, and why others were refused."""

    entries: list[Entry]
    digests: dict[Path, str]
    refused: dict[str, str]


def check_images(entries: Sequence[Entry], data: Path) -> ImageInventory:
    """Hash and decode every file once; what is missing, broken or too small is refused by name."""
    from detection.bundle import sha256_of  # brings torch, which erasing a sample does not need

    kept: list[Entry] = []
    digests: dict[Path, str] = {}
    refused: dict[str, str] = {}
    for entry in entries:
        name = entry.path.relative_to(data).as_posix()
        try:
            height, width = read_pixels(entry)[0].shape[:2]
        except ImageRejected as error:
            refused[name] = f"cannot be read: {error}"
            continue
        except OSError as error:
            refused[name] = f"cannot be read: {type(error).__name__}"
            continue
        if min(height, width) < MIN_SIDE:
            refused[name] = f"{width} x {height} pixels: {MIN_SIDE} a side are needed"
            continue
        kept.append(entry)
        digests[entry.path] = sha256_of(entry.path)
    return ImageInventory(kept, digests, refused)
