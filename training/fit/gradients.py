"""The gradients of one batch, in pieces where it does not fit the device's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Loss = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]

_log = structlog.get_logger(__name__)


class Gradients:
    """Computes gradients; out of device memory, in twice as many pieces from then on.

    `loss` returns named scalar parts; the one named "loss" is a mean over the rows of its batch.
    bfloat16 acts on the forward pass only.
    """

    def __init__(self, loss: Loss, *, seed: int, bfloat16: bool, device: str) -> None:
        self._loss, self._seed, self._bfloat16 = loss, seed, bfloat16
        self._device, self._pieces = torch.device(device), 1

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], step: int) -> dict[str, float]:
        """Leave the gradients of a batch in the model; returns the parts of the loss."""
        placed = {name: value.to(self._device) for name, value in batch.items()}
        while True:
            # Draws inside the loss must not depend on where the run was last resumed.
            torch.manual_seed((self._seed << 32) + step)
            model.zero_grad(set_to_none=True)
            try:
                return self._in_pieces(model, placed)
            except torch.OutOfMemoryError:
                self._pieces *= 2
                if self._pieces > rows(batch):
                    raise
                _log.warning("device_memory_exhausted", step=step, pieces=self._pieces)

    def _in_pieces(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up the gradients of the pieces, each weighted by its share of the batch."""
        cut = {name: value.tensor_split(self._pieces) for name, value in batch.items()}
        found: dict[str, float] = {}
        for index in range(self._pieces):
            piece = {name: values[index] for name, values in cut.items()}
            share = rows(piece) / rows(batch)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                parts = self._loss(model, piece)
            (parts["loss"] * share).backward()
            for name, part in parts.items():
                found[name] = found.get(name, 0.0) + share * part.item()
        return found


def rows(batch: Mapping[str, Tensor]) -> int:
    """Return how many rows a batch has: the length of any of its tensors."""
    return len(next(iter(batch.values())))
