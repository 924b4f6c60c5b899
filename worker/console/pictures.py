"""Pictures for the browser: always pixels that we encoded, never an uploader's bytes.

Where a worker kept evidence, its preview is served; else one is made here, in the decode pool.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from worker.console.desk import Refused
from worker.decoding.pool import DecodePool
from worker.storage.interface import ObjectMissing
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from worker.settings import Settings
    from worker.storage.interface import Storage

#: Longest side of a preview, in pixels.
MAX_SIDE = 1600
#: How long a picture may wait for a decoding process, in seconds.
WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """Where an upload lies."""

    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None


class Pictures:
    """Reads storage and decodes; close it at the end."""

    def __init__(self, storage: Storage, pool: DecodePool, *, max_bytes: int) -> None:
        self._storage = storage
        self._pool = pool
        self._max_bytes = max_bytes

    @classmethod
    def open(cls, settings: Settings) -> Pictures:
        """Return the pictures of a deployment; decoding processes start with the first."""
        return cls(
            S3Storage(settings.s3),
            DecodePool(settings.intake),
            max_bytes=settings.intake.max_bytes,
        )

    def close(self) -> None:
        """End the decoding processes."""
        self._pool.close()

    def preview(self, original: Original) -> bytes:
        """Return an upload's picture as WebP of at most `MAX_SIDE` pixels, without its metadata.

        Raises `Refused` for a picture that is gone, and what storage and the pool raise.
        """
        try:
            data = self._storage.fetch(
                original.bucket,
                original.key,
                version_id=original.version_id,
                etag=original.etag,
                max_bytes=self._max_bytes,
            )
        except ObjectMissing as error:
            raise Refused("The picture is no longer in storage.", status=404) from error
        with self._pool.decode(data, key=original.key, wait_s=WAIT_S) as decoded:
            return encode(decoded.pixels)


def encode(pixels: NDArray[Any]) -> bytes:
    """Encode pixels, uint8 (H, W, 3), as lossless WebP of at most `MAX_SIDE` pixels a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A tile of the aligned branch: its place in the picture's own pixels, and its logit."""

    left: int
    top: int
    width: int
    height: int
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What can be laid over an image's preview, in the picture's own pixels."""

    width: int
    height: int
    has_map: bool = False
    frames: tuple[Frame, ...] = ()


def layers_of(facts: Mapping[str, Any]) -> Layers:
    """Return the layers that are kept for an image."""
    return Layers(width=facts["width"] or 1, height=facts["height"] or 1)
