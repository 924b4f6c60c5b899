"""Applicability: pictures too small, blank, flat or novel are `unsure`, whatever their score.

The thresholds rest on photographs, which have grain or texture nearly everywhere, of a tile a side
and more. The branches answer of anything else too: a lens cap, an even colour, a gradient, a
chessboard or a thumbnail has none of a photograph's traces, and what is missing looks like a
decoder's work. Such an image lies outside what the operating points hold for, and so does one that
is unlike all that was learnt from, such as noise or the sky through a telescope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detection.aligned import read_tiles
from detection.networks.branch_configs import AlignedConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: From this share of what is read on, an image is outside. Images that the detector trained on stay
#: below it, however they are saved: no generated one of hundreds reached it, of photographs one in
#: a hundred.
MAX_FLAT_SHARE = 0.75


def inapplicable_reason(
    image: NDArray[np.uint8], config: AlignedConfig | None = None
) -> str | None:
    """Say why RGB uint8 (H, W, 3) is nothing to judge, or return None.

    The words before the colon name the kind, of which there are three: "too small", "nearly nothing
    to look at" and "drawn rather than photographed"; `novelty_reason` gives a fourth. Looked at is
    what the aligned branch reads; without a `config`, with the default tiles.
    """
    config = config or AlignedConfig()
    height, width = image.shape[:2]
    if min(height, width) < config.tile:
        return (
            f"too small: smaller than the {config.tile} pixels a side that the thresholds hold for"
        )
    tiles = read_tiles(image, config)
    if (share := blank_share(tiles)) >= MAX_FLAT_SHARE:
        return f"nearly nothing to look at: {share:.0%} of what was read is blank"
    if (share := even_share(tiles)) >= MAX_FLAT_SHARE:
        return f"drawn rather than photographed: {share:.0%} of what was read is even colour"
    return None


def novelty_reason(novelty: float, most: float | None) -> str | None:
    """Say that a picture's novelty (`detection.backbone.novelty`) is above `most`, or None."""
    if most is None or novelty <= most:
        return None
    return (
        f"unlike what was learnt from: its novelty is {novelty:.1f}, that of nearly all images that"
        f" the detector learnt from at most {most:.1f}"
    )


def blank_share(tiles: NDArray[np.uint8]) -> float:
    """Share of pixels of uint8 (T, H, W, 3) that lie within a level of their blurred surroundings.

    That is as far as rounding to 8 bits moves a pixel of a smooth surface. The blur is the aligned
    branch's, 5 x 5 binomial; pixels less than two from an edge are not counted.
    """
    blurred = tiles.astype(np.uint16)  # 255 times the weights' sum, 256, just fits
    for _ in range(4):  # the binomial 1, 4, 6, 4, 1 is four sums of neighbours
        blurred = blurred[:, 1:] + blurred[:, :-1]
        blurred = blurred[:, :, 1:] + blurred[:, :, :-1]
    levels = tiles[:, 2:-2, 2:-2].astype(np.uint16) << 8
    near = np.maximum(levels, blurred) - np.minimum(levels, blurred) < 1 << 8
    return _share_in_all_channels(near)


def even_share(tiles: NDArray[np.uint8]) -> float:
    """Share of pixels of uint8 (T, H, W, 3) with the very colour of the two to the right and below.

    A sensor's noise leaves few of those, and even a JPEG keeps them to its flattest blocks.
    """
    corner = tiles[:, :-1, :-1]
    same = (corner == tiles[:, 1:, :-1]) & (corner == tiles[:, :-1, 1:])
    return _share_in_all_channels(same)


def _share_in_all_channels(holds: NDArray[np.bool_]) -> float:
    # Every image passes here: numpy's reductions over an axis of three take ten times as long.
    return float((holds[..., 0] & holds[..., 1] & holds[..., 2]).mean())
