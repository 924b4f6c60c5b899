"""Retries a forward pass in halves when it does not fit into device memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import structlog
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Found = TypeVar("Found")


def retry_in_halves(
    compute: Callable[[Sequence[Item]], Sequence[Found]], items: Sequence[Item]
) -> list[Found]:
    """Compute one result an item at once; out of device memory, in halves down to single items.

    Raises `torch.OutOfMemoryError` when not even one item fits.
    """
    try:
        return list(compute(items))
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
        _log.warning("device_memory_exhausted", size=len(items))
    half = (len(items) + 1) // 2
    return retry_in_halves(compute, items[:half]) + retry_in_halves(compute, items[half:])
