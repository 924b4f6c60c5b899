"""Advice on a refused data set: which single re-encoding of both sides would align them best.

Each candidate is applied to a small sample, and the shortcut probe is run again on the result.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.data.codecs import Codec
from training.evaluation.alignment_measures import probe
from training.evaluation.shortcut_features import SourceFile, read_shortcut_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from training.evaluation.shortcut_features import ShortcutFeatures

    Pixels = NDArray[np.uint8]

#: So many images a side are re-encoded, and of each at most the centre of so many pixels a side.
SAMPLE, CROP = 40, 512
#: The crop begins on the grid of JPEG's subsampled blocks, so that earlier blocks stay in phase.
GRID = 16


def _halved(pixels: Pixels) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    size = (max(1, image.width // 2), max(1, image.height // 2))
    image.resize(size, Image.Resampling.BOX).save(buffer, "PNG")
    return buffer.getvalue()


REENCODINGS: dict[str, Callable[[Pixels], bytes]] = {
    **{f"JPEG {quality}": Codec("JPEG", quality).encode for quality in (95, 85, 75, 60)},
    "WebP 80": Codec("WEBP", 80).encode,
    "half size": _halved,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodingAdvice:
    """AUC of a probe on all nuisances but size, of `images` images: as they are and re-encoded."""

    images: int
    untouched: float
    reencoded: dict[str, float]

    def __str__(self) -> str:
        """Say which re-encoding brings the probe nearest to 0.5, or that none helps."""
        best = min(self.reencoded, key=lambda name: abs(self.reencoded[name] - 0.5))
        before, after = self.untouched, self.reencoded[best]
        if abs(after - 0.5) >= abs(before - 0.5):
            return (
                f"No re-encoding of both sides ({', '.join(self.reencoded)}) brings the probe"
                f" nearer to 0.5 than AUC {before:.3f} ({self.images} images)."
            )
        return (
            f"Of {', '.join(self.reencoded)}, {best} on both sides brings the probe nearest to 0.5:"
            f" AUC {after:.3f} instead of {before:.3f} ({self.images} images, without their size)."
        )


class ReencodingSample:
    """The files of either side whose groups have the least digests: the sides of pairs together."""

    def __init__(self) -> None:
        self._kept: dict[bool, dict[tuple[bytes, str], tuple[Pixels, list[float]]]] = {
            False: {},
            True: {},
        }

    def add(self, file: SourceFile, found: ShortcutFeatures) -> None:
        """Take one file, if it is among the sample so far."""
        side = self._kept[file.generated]
        rank = (hashlib.sha256(file.group.encode()).digest(), file.group)
        if len(side) == SAMPLE and rank >= max(side):
            return
        side[rank] = (_centre(found.pixels).copy(), _figures(found.groups))
        if len(side) > SAMPLE:
            del side[max(side)]

    def advise(self, seed: int = 0) -> ReencodingAdvice:
        """Re-encode the sample by each candidate; some seconds."""
        kept = [(generated, rank[1], *one) for generated, rank, one in self._files()]
        labels = np.array([generated for generated, *_ in kept])
        groups = [group for _, group, *_ in kept]

        def auc(figures: list[list[float]]) -> float:
            return probe(np.array(figures), labels, groups, seed).auc

        return ReencodingAdvice(
            images=len(kept),
            untouched=auc([figures for *_, figures in kept]),
            reencoded={
                name: auc([_measured(encode(pixels)) for _, _, pixels, _ in kept])
                for name, encode in REENCODINGS.items()
            },
        )

    def _files(self) -> Iterator[tuple[bool, tuple[bytes, str], tuple[Pixels, list[float]]]]:
        for generated, side in self._kept.items():
            for rank, one in side.items():
                yield generated, rank, one


def _centre(pixels: Pixels) -> Pixels:
    top, left = (max(0, length - CROP) // 2 // GRID * GRID for length in pixels.shape[:2])
    return pixels[top : top + CROP, left : left + CROP]


def _measured(data: bytes) -> list[float]:
    file = SourceFile(name="", data=data, generated=False, group="")
    return _figures(read_shortcut_features(file).groups)


def _figures(groups: Mapping[str, list[float]]) -> list[float]:
    """Join the nuisances that a re-encoding changes: all but the size."""
    return [value for name, values in groups.items() if name != "size" for value in values]
