"""A test fixture: photographs with a patch of another picture, and how well a map points at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from detection.centre_square import centre_square

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Rng = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Splice:
    """RGB uint8 (H, W, 3), and bool (H, W): where the patch is."""

    pixels: Pixels
    mask: NDArray[np.bool_]


def paste(host: Pixels, donor: Pixels, rng: Rng, *, share: float = 0.4) -> Splice:
    """Replace a random square of the host's centre square, RGB uint8 (H, W, 3), by the donor's.

    The side of the patch is a `share` of the centre square's. The donor lies over the host from its
    top left corner when it has the host's size, so that a reconstruction keeps its place; any other
    donor gives a random square of its own, at its own resolution.
    """
    left, top, square, _ = centre_square(*host.shape[:2])
    side = min(int(square * share), *donor.shape[:2])
    y, x = (int(start + rng.integers(square - side + 1)) for start in (top, left))
    if donor.shape == host.shape:
        patch = donor[y : y + side, x : x + side]
    else:
        down, right = (int(rng.integers(length - side + 1)) for length in donor.shape[:2])
        patch = donor[down : down + side, right : right + side]
    pixels, mask = host.copy(), np.zeros(host.shape[:2], dtype=bool)
    pixels[y : y + side, x : x + side] = patch
    mask[y : y + side, x : x + side] = True
    return Splice(pixels=pixels, mask=mask)


def pointing_auc(contributions: NDArray[np.float32], splice: Splice) -> float:
    """Return the AUC of a map of the centre square (h, w) against where the patch is.

    Each cell is in the patch by the share of it that is covered: it counts as both, by weight.
    """
    left, top, square, _ = centre_square(*splice.mask.shape)
    covered = Image.fromarray(splice.mask[top : top + square, left : left + square].astype("f4"))
    height, width = contributions.shape
    share = np.asarray(covered.resize((width, height), Image.Resampling.BOX)).ravel()
    cells = contributions.ravel()
    return float(
        roc_auc_score(
            np.repeat([True, False], len(cells)),
            np.concatenate([cells, cells]),
            sample_weight=np.concatenate([share, 1 - share]),
        )
    )
