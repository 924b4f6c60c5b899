"""Early stopping: which weights are kept, when it stops, what a kill leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.fit.early_stopping import EarlyStopping, Patience, mean_loss
from training.fit.tensorboard import HELD_BACK, CurveWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PATIENCE = Patience(every=10, steps=30)
#: The loss at steps 0, 10, 20, …
LOSSES = (0.9, 0.5, 0.7, 0.4, 0.6, 0.6, 0.45, 0.1)


def at(step: int) -> dict[str, Tensor]:
    """Weights that say which step they are of."""
    return {"weight": torch.tensor([float(step)])}


def loss_of(weights: Mapping[str, Tensor]) -> float:
    """Look the loss up."""
    return LOSSES[int(weights["weight"]) // 10]


def early_stopping(
    folder: Path, last: int, measure: Callable[[Mapping[str, Tensor]], float] = loss_of
) -> EarlyStopping:
    """What stops a run of `last` steps early."""
    curves = CurveWriter(folder, HELD_BACK)
    return EarlyStopping(folder, measure, PATIENCE, last=last, curves=curves)


def test_the_best_weights_are_kept_and_patience_ends(tmp_path: Path) -> None:
    """Step 30 is the best; three measurements later training stops, before step 70 is seen."""
    stopping = early_stopping(tmp_path, 79)
    stops = [step for step in range(80) if stopping(step, at(step))]

    assert stops[0] == 60
    (best,) = stopping.best().values()
    assert float(best) == 70  # the caller went on although it was told to stop
    assert stopping.history() == {10 * n: loss for n, loss in enumerate(LOSSES)} | {79: LOSSES[7]}


def test_the_last_step_is_judged_whatever_its_number(tmp_path: Path) -> None:
    """A run of 37 steps ends with its best weights, which no multiple of 10 would have seen."""
    losses = {0: 0.9, 10: 0.5, 20: 0.7, 30: 0.4, 37: 0.2}
    stopping = early_stopping(tmp_path, 37, lambda w: losses[int(w["weight"])])
    assert not any(stopping(step, at(step)) for step in range(38))

    assert stopping.best() == at(37)
    assert stopping.history() == losses


def test_a_killed_run_knows_its_best(tmp_path: Path) -> None:
    """Another process goes on from the stored best, and measures it the same again."""
    early_stopping(tmp_path, 80)(30, at(30))
    again = early_stopping(tmp_path, 80)

    assert again.found() == (30, 0.4)
    assert not again(30, at(30))
    assert not again(50, at(50))
    assert again(60, at(60))
    assert again.best() == at(30)


def test_weights_that_are_no_better_are_not_kept(tmp_path: Path) -> None:
    """What training starts from stays the best when nothing beats it; NaN beats nothing."""
    stopping = early_stopping(tmp_path, 20, lambda w: float("nan") if w["weight"] else 0.3)
    stopping(0, at(0))
    stopping(10, at(10))

    assert stopping.best() == at(0)
    assert stopping.found() == (0, 0.3)


class Constant:
    """A task whose batches are their number."""

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """One number."""
        return {"value": torch.tensor([float(seed + step)])}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's answer; it must not be training."""
        assert not model.training
        return {"loss": model(batch["value"]).sum()}


def test_the_mean_is_over_fixed_batches() -> None:
    """A line of slope 2 and intercept 1 over 0, 1, 2 has the mean 3."""
    model = nn.Linear(1, 1)
    weights = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}

    assert mean_loss(model, Constant(), weights, batches=3) == 3.0
