"""Early stopping: the weights with the lowest loss on images that are not trained on.

The weights that training starts from are measured too: what does not beat them is not kept.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training.files import written_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from training.fit.loop import Task
    from training.fit.tensorboard import CurveWriter

_log = structlog.get_logger(__name__)

BEST = "best.safetensors"
HISTORY = "validation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Measure every `every` steps, and stop after `steps` steps without a better loss."""

    every: int = 50
    steps: int = 150


class EarlyStopping:
    """The `stop` of `training.fit.loop.fit`; what it found is in `run_dir` and survives a kill."""

    def __init__(
        self,
        run_dir: Path,
        loss_of: Callable[[Mapping[str, Tensor]], float],
        patience: Patience,
        *,
        last: int,
        curves: CurveWriter,
    ) -> None:
        """Measure by `loss_of`; step `last`, the run's last, is measured whatever its number."""
        self._file = run_dir / BEST
        self._loss_of, self._patience, self._last = loss_of, patience, last
        self._curves = curves

    def __call__(self, step: int, weights: Mapping[str, Tensor]) -> bool:
        """Measure the weights when it is time to; True when training is to stop."""
        if step % self._patience.every and step != self._last:
            return False
        loss = self._loss_of(weights)
        best_step, best_loss = self.found()
        self._note(step, loss)
        if loss < best_loss:
            self._keep(step, loss, weights)
            return False
        return step - best_step >= self._patience.steps

    def found(self) -> tuple[int, float]:
        """Return the step of the best weights and their loss; (0, infinity) before the first."""
        if not self._file.is_file():
            return 0, math.inf
        with safe_open(str(self._file), "pt") as handle:
            known = handle.metadata()
        return int(known["step"]), float(known["loss"])

    def best(self) -> dict[str, Tensor]:
        """Return the best weights."""
        return load_file(self._file)

    def history(self) -> dict[int, float]:
        """Return the loss by the step at which it was measured."""
        file = self._file.with_name(HISTORY)
        if not file.is_file():
            return {}
        return {int(step): loss for step, loss in json.loads(file.read_text("utf-8")).items()}

    def _note(self, step: int, loss: float) -> None:
        _log.info("network_validated", run=self._file.parent.name, step=step, loss=round(loss, 4))
        self._curves.add(step, {"loss": loss})
        with written_aside(self._file.with_name(HISTORY)) as aside:
            aside.write_text(json.dumps(self.history() | {step: loss}), encoding="utf-8")

    def _keep(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> None:
        kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        with written_aside(self._file) as aside:
            save_file(kept, aside, metadata={"step": str(step), "loss": repr(loss)})


def mean_loss(
    model: nn.Module,
    task: Task,
    weights: Mapping[str, Tensor],
    *,
    batches: int,
    device: str = "cpu",
) -> float:
    """Return the mean loss of weights over fixed batches of a task, by a network of its own."""
    model.load_state_dict(dict(weights))
    model.to(device).eval()
    total = 0.0
    with torch.inference_mode():
        for index in range(batches):
            batch = {name: value.to(device) for name, value in task.batch(0, index).items()}
            total += task.loss(model, batch)["loss"].item()
    return total / batches
