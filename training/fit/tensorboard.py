"""Training curves as TensorBoard event files: `tensorboard --logdir` of a run's folder draws them.

Under a run's `curves` folder, `training` and `held-back` are TensorBoard's runs, so that one chart
holds the loss of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

CURVES = "curves"
TRAINING, HELD_BACK = "training", "held-back"


class CurveWriter:
    """Figures by step; a run that was resumed goes on with the curves of the killed one."""

    def __init__(self, run_dir: Path, name: str) -> None:
        """Write under `run_dir`; nothing is made before the first figures."""
        self._folder = run_dir / CURVES / name
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add named figures of a step, and write them out."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed process noted from this step on is drawn anew.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, figure in figures.items():
            self._writer.add_scalar(name, figure, step)
        self._writer.flush()
