"""The result of a walk over a container, before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detection.intake.colour_spaces import ColourSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The display time of each frame of an animation, in ms as the file states it.

    `first` is the decoder's number of the first frame: 1 where picture 0 is not part of the
    animation. An animation that does not repeat for ever ends on its last frame, which stays.
    """

    durations_ms: tuple[float, ...]
    repeats: bool = True
    first: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The result of the walk.

    `size` is in pixels, None where only the decoder's header pass knows it. `exif` (a TIFF block)
    and `xmp` are empty where there is none; a PNG has XMP in `texts`, its text chunks, each a name
    and a body as stored. `picture` is what a decoder is given in place of the
    file, None for the file itself; `page` the decoder's number of the picture. `icc` and `colours`
    say how colours are told where the decoder does not find it.
    """

    size: tuple[int, int] | None = None
    frames: int = 1
    exif: bytes = b""
    xmp: bytes = b""
    texts: tuple[tuple[bytes, bytes], ...] = ()
    picture: bytes | None = None
    page: int = 0
    timeline: Timeline | None = None
    icc: bytes | None = None
    colours: ColourSpace | None = None
