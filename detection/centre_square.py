"""The centre square of an image, which branches that see a picture as a whole look at.

Without torch: evidence is drawn by processes that never score.
"""

from __future__ import annotations


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the square that such a view shows: (left, top, width, height) in pixels."""
    square = min(height, width)
    return (width - square) // 2, (height - square) // 2, square, square
