"""Finished weights of a run's networks: written once, read back by every later call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from safetensors.torch import load_file, save_file

from training.files import written_aside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

_log = structlog.get_logger(__name__)


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write what a training ended with; the file says that the training is finished."""
    finished = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with written_aside(file) as aside:
        save_file(finished, aside)
    _log.info("stage_finished", file=file.name, run=file.parent.name)


def load_weights(network: nn.Module, file: Path) -> None:
    """Give the network its finished weights, and set it to inference."""
    network.load_state_dict(load_file(file))
    network.eval()
