"""The training loop: seeds, interruption, divergence, averages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional

from training.fit.loop import (
    CHECKPOINT,
    Ema,
    LoopConfig,
    TrainingDiverged,
    fit,
    read_checkpoint,
    schedule,
)
from training.fit.tensorboard import CURVES, TRAINING

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = LoopConfig(
    steps=12, warmup_steps=3, checkpoint_every=4, log_every=100, loader_workers=0, bfloat16=False
)


class Killed(Exception):
    """Stands in for the end of the process."""


class Regression:
    """A line with noise from torch's own generator in the loss, as a posterior's sample has."""

    def __init__(self, *, diverge_at: int | None = None) -> None:
        self.diverge_at = diverge_at

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Sixteen points of one step."""
        generator = torch.Generator().manual_seed(seed * 1000 + step)
        inputs = torch.randn(16, 3, 4, 4, generator=generator)
        scale = float("nan") if step == self.diverge_at else 1.0
        return {"inputs": inputs, "targets": scale * inputs.mean(dim=(1, 2, 3))}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error under a little noise."""
        inputs = batch["inputs"] + 0.01 * torch.randn(batch["inputs"].shape)
        return {"loss": functional.mse_loss(model(inputs).flatten(), batch["targets"])}


def network() -> nn.Module:
    """A convolution with batch normalisation, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1))


def train(folder: Path, config: LoopConfig = CONFIG, **options: object) -> dict[str, Tensor]:
    """Run the loop on a fresh network."""
    return fit(network(), Regression(), config, folder, **options)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Every tensor is the same to the bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    """Two runs agree to the bit; another seed gives other weights."""
    first = train(tmp_path / "a")
    torch.manual_seed(99)
    assert_equal(first, train(tmp_path / "b"))
    other = train(tmp_path / "c", replace(CONFIG, seed=1))
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize("killed_after", [1, 4, 6, 11])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, killed_after: int) -> None:
    """Resumed from its last checkpoint, a run ends with the weights of an uninterrupted one."""

    def kill(step: int) -> None:
        if step == killed_after:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "killed", on_step=kill)
    steps: list[int] = []
    resumed = train(tmp_path / "killed", on_step=steps.append)
    assert steps[0] == killed_after // 4 * 4 + 1
    assert_equal(train(tmp_path / "whole"), resumed)


def test_a_run_draws_its_curves(tmp_path: Path) -> None:
    """Loss, rates and learning rate at every fourth step and at the last, as the log has them."""
    train(tmp_path, replace(CONFIG, steps=10, log_every=4))
    reader = EventAccumulator(str(tmp_path / CURVES / TRAINING))
    reader.Reload()

    tags = {"loss", "steps_per_s", "images_per_s", "learning_rate"}
    assert set(reader.Tags()["scalars"]) == tags
    drawn = {tag: [event.value for event in reader.Scalars(tag)] for tag in tags}
    assert [event.step for event in reader.Scalars("loss")] == [4, 8, 10]
    assert drawn["images_per_s"] == pytest.approx([16 * rate for rate in drawn["steps_per_s"]])
    assert all(rate > 0 for rate in drawn["steps_per_s"])
    assert drawn["learning_rate"][0] == pytest.approx(CONFIG.learning_rate)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    """Calling again returns the stored average without a step."""
    done = train(tmp_path)
    steps: list[int] = []
    assert_equal(done, train(tmp_path, on_step=steps.append))
    assert steps == []


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    """The last checkpoint stays as it was before the divergence."""
    with pytest.raises(TrainingDiverged, match="step 6"):
        fit(network(), Regression(diverge_at=6), CONFIG, tmp_path)
    step, tensors = read_checkpoint(tmp_path / CHECKPOINT)
    assert step == 4
    for part in tensors.values():
        assert all(torch.isfinite(value).all() for value in part.values())


def test_the_average_is_worked_out_by_hand() -> None:
    """Decay = min(0.9, (1 + step) / (10 + step)); integers are copied."""
    model = nn.BatchNorm1d(1)
    ema = Ema(model, 0.9)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked.fill_(step + 7)
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.state["weight"]) == pytest.approx(expected)
    assert int(ema.state["num_batches_tracked"]) == 9
    ema.decay = 0.0
    ema.update(model, 1000)
    assert float(ema.state["weight"]) == 8.0


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    """A third, two thirds, one; then half a cosine over what is left."""
    rates = [schedule(step, CONFIG) for step in range(12)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert schedule(3 + 9 // 2, LoopConfig(steps=11, warmup_steps=3)) == pytest.approx(0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    """Batches made in another process are the same batches."""
    config = LoopConfig(steps=3, warmup_steps=1, log_every=100, loader_workers=1, bfloat16=False)
    inline = LoopConfig(steps=3, warmup_steps=1, log_every=100, loader_workers=0, bfloat16=False)
    assert_equal(train(tmp_path / "a", inline), train(tmp_path / "b", config))


class Narrow(Regression):
    """A device whose memory holds so many points."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.sizes = room, list[int]()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error without noise; too many points at once are refused."""
        self.sizes.append(len(batch["inputs"]))
        if self.sizes[-1] > self.room:
            raise torch.OutOfMemoryError
        answer = model(batch["inputs"]).flatten()
        return {"loss": functional.mse_loss(answer, batch["targets"])}


def plain_network() -> nn.Module:
    """A network whose gradient is the mean over the batch, however that is cut."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 1))


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path) -> None:
    """Pieces that fit add up to the gradients of the whole batch, and are kept to afterwards."""
    narrow = Narrow(room=5)
    whole = fit(plain_network(), Narrow(room=16), CONFIG, tmp_path / "whole")
    halved = fit(plain_network(), narrow, CONFIG, tmp_path / "halved")

    for name, value in whole.items():
        torch.testing.assert_close(halved[name], value, rtol=1e-4, atol=1e-6)
    assert narrow.sizes == [16, 8] + [4] * 4 * CONFIG.steps


def test_one_point_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    """When not even single points fit, the error is the device's own."""
    with pytest.raises(torch.OutOfMemoryError):
        fit(plain_network(), Narrow(room=0), CONFIG, tmp_path)


def test_a_run_can_be_stopped_early(tmp_path: Path) -> None:
    """The run asks before its first step and after each, and ends when it is told to."""
    asked: list[int] = []

    def stop(step: int, _weights: object) -> bool:
        asked.append(step)
        return step == 3

    train(tmp_path, stop=stop)
    assert asked == [0, 1, 2, 3]
