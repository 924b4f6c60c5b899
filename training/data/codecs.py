"""Re-encoding in memory: the one place that turns pixels into JPEG or WebP and back."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Qualities that `draw_codec` draws from, both ends included.
QUALITIES = (50, 95)
#: Share of WebP among them.
WEBP_SHARE = 1 / 3
#: The longest side that WebP can hold, in pixels.
WEBP_MAX_SIDE = 16383


@dataclass(frozen=True, slots=True)
class Codec:
    """A lossy codec at one setting; `subsampling` is JPEG's chroma layout, "4:2:0" or "4:4:4"."""

    kind: str
    quality: int
    subsampling: str = "4:2:0"

    @property
    def suffix(self) -> str:
        """File name ending."""
        return "jpg" if self.kind == "JPEG" else self.kind.lower()

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        """Encode RGB uint8 (H, W, 3) as a file."""
        buffer = io.BytesIO()
        options = {"subsampling": self.subsampling} if self.kind == "JPEG" else {"method": 2}
        Image.fromarray(image).save(buffer, self.kind, quality=self.quality, **options)
        return buffer.getvalue()

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode and decode RGB uint8 (H, W, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.encode(image))).convert("RGB"))


def draw_codec(key: str) -> Codec:
    """Draw WebP or JPEG, its quality and its chroma layout by a key alone."""
    rng = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1], endpoint=True))
    if rng.random() < WEBP_SHARE:
        return Codec("WEBP", quality)
    return Codec("JPEG", quality, "4:2:0" if rng.random() < 0.75 else "4:4:4")
