"""Training curves, read back by TensorBoard's own reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from training.fit.tensorboard import CURVES, HELD_BACK, TRAINING, CurveWriter

if TYPE_CHECKING:
    from pathlib import Path


def drawn(folder: Path, name: str, figure: str) -> dict[int, float]:
    """What TensorBoard draws of a figure, by step."""
    reader = EventAccumulator(str(folder / CURVES / name))
    reader.Reload()
    return {event.step: event.value for event in reader.Scalars(figure)}


def test_a_resumed_run_goes_on_with_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the killed process drew beyond the checkpoint is drawn anew; the rest stays."""
    # Files of one second are told apart, and read in the order, by this process's count of them.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with CurveWriter(tmp_path, TRAINING) as killed:
        for step in (10, 20, 30):
            killed.add(step, {"loss": step / 100})
    with CurveWriter(tmp_path, TRAINING) as resumed:
        for step in (20, 30, 40):
            resumed.add(step, {"loss": step / 50})

    found = drawn(tmp_path, TRAINING, "loss")
    assert list(found) == [10, 20, 30, 40]
    assert found == pytest.approx({10: 0.1, 20: 0.4, 30: 0.6, 40: 0.8})


def test_a_run_without_a_step_leaves_no_curves(tmp_path: Path) -> None:
    """A run that was finished before adds no empty file when it is asked for again."""
    with CurveWriter(tmp_path, HELD_BACK):
        pass
    assert list(tmp_path.iterdir()) == []
