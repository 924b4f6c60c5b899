"""Wilson intervals of shares, the same formula as `moderation.wilson`."""

from __future__ import annotations

from math import sqrt

#: Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval (Wilson 1927) of a share seen in `n` images."""
    if n <= 0:
        return 0.0, 1.0
    spread = 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / spread
    half = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / spread
    return max(0.0, centre - half), min(1.0, centre + half)
