"""How long to wait before the next try."""

from __future__ import annotations

#: More would be no number; the longest wait is reached long before.
_MOST_DOUBLINGS = 64


def backoff_s(failures: int, *, first_s: float, longest_s: float) -> float:
    """Return the seconds to wait after `failures` earlier failures in a row.

    The first wait is `first_s`, every further one twice as long, and none longer than `longest_s`.
    """
    return min(first_s * 2.0 ** min(failures, _MOST_DOUBLINGS), longest_s)
