"""The training loop that every network shares: EMA, schedule, checkpoints, resumption.

A `Task` says what a step's batch is and what it costs; `fit` does the rest. A batch is a function
of (seed, step), so that a run that was killed and resumed sees what an uninterrupted one sees.
Checkpoints are safetensors (weights, average, optimiser moments) written aside and renamed into
place. A batch that does not fit the device's memory is computed in pieces.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from detection.errors import UnlatentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

log = structlog.get_logger(__name__)

CHECKPOINT = "checkpoint.safetensors"


class TrainingDiverged(UnlatentError):
    """The loss is no longer a number; the last checkpoint is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """Length, optimiser and bookkeeping of one run; bfloat16 acts on the forward pass only."""

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    checkpoint_every: int = 200
    log_every: int = 50
    seed: int = 0
    bfloat16: bool = True
    loader_workers: int = 1


class Task(Protocol):
    """What is trained: `batch` runs in loader processes, `loss` in the training process."""

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make the batch of one step from (seed, step) alone."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return named scalar parts; the one named "loss" is minimised."""


class _Steps(Dataset[dict[str, Tensor]]):
    def __init__(self, task: Task, seed: int, start: int, stop: int) -> None:
        self._task, self._seed, self._start, self._stop = task, seed, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        torch.set_num_threads(1)
        return self._task.batch(self._seed, self._start + index)


class Ema:
    """Exponential moving average of a model's weights; integer buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average toward the model; early steps use a shorter memory."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


def fit(
    model: nn.Module,
    task: Task,
    config: LoopConfig,
    run_dir: Path,
    *,
    device: str = "cpu",
    on_step: Callable[[int], None] | None = None,
    stop: Callable[[int, Mapping[str, Tensor]], bool] | None = None,
) -> dict[str, Tensor]:
    """Train `model` and return the averaged weights; resumes from `run_dir` when it can.

    After each step `on_step` hears how many are done. `stop` may end the run: before the first step
    and after each it is given the number done and the averaged weights. Raises `TrainingDiverged`
    when the loss stops being finite.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    ema = Ema(model, config.ema_decay)
    start = _resume(run_dir, model, optimiser, ema)
    if stop is not None and stop(start, ema.state):
        return ema.state
    began, running, pieces = time.monotonic(), float("nan"), 1
    for step, batch in enumerate(_batches(task, config, start), start):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config)
        model.train()
        on_device = {name: value.to(device) for name, value in batch.items()}
        parts, pieces = _descend(model, task, on_device, config, step, pieces)
        loss = parts["loss"]
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss became {loss} at step {step} of {run_dir}")
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        ema.update(model, step)
        running = loss if math.isnan(running) else 0.98 * running + 0.02 * loss
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            rate = (done - start) / (time.monotonic() - began)
            values = {name: round(part, 4) for name, part in parts.items()}
            log.info(
                "train_step",
                run=run_dir.name,
                step=done,
                of=config.steps,
                smooth=round(running, 4),
                steps_per_s=round(rate, 2),
                **values,
            )
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(run_dir, model, optimiser, ema, done, config)
        if on_step is not None:
            on_step(done)
        if stop is not None and stop(done, ema.state):
            log.info("train_stopped_early", run=run_dir.name, step=done, of=config.steps)
            break
    return ema.state


def _descend(
    model: nn.Module,
    task: Task,
    batch: dict[str, Tensor],
    config: LoopConfig,
    step: int,
    pieces: int,
) -> tuple[dict[str, float], int]:
    """Compute the gradients of a batch; out of device memory, in twice as many pieces from then on.

    Returns the parts of the loss and the number of pieces it took.
    """
    while True:
        # Draws inside the loss must not depend on where the run was last resumed.
        torch.manual_seed((config.seed << 32) + step)
        model.zero_grad(set_to_none=True)
        try:
            return _in_pieces(model, task, batch, config, pieces), pieces
        except torch.OutOfMemoryError:
            pieces *= 2
            if pieces > min(map(len, batch.values())):
                raise
            log.warning("out_of_device_memory", step=step, pieces=pieces)


def _in_pieces(
    model: nn.Module, task: Task, batch: dict[str, Tensor], config: LoopConfig, pieces: int
) -> dict[str, float]:
    """Add up the gradients of the pieces, each weighted by its share of the batch."""
    cut = {name: value.tensor_split(pieces) for name, value in batch.items()}
    total = len(next(iter(batch.values())))
    found: dict[str, float] = {}
    for index in range(pieces):
        piece = {name: values[index] for name, values in cut.items()}
        first = next(iter(piece.values()))
        share = len(first) / total
        with torch.autocast(first.device.type, torch.bfloat16, enabled=config.bfloat16):
            parts = task.loss(model, piece)
        (parts["loss"] * share).backward()
        for name, part in parts.items():
            found[name] = found.get(name, 0.0) + share * part.item()
    return found


def schedule(step: int, config: LoopConfig) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then a half cosine to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _batches(task: Task, config: LoopConfig, start: int) -> Iterator[dict[str, Tensor]]:
    steps = _Steps(task, config.seed, start, config.steps)
    if not config.loader_workers:
        threads = torch.get_num_threads()
        for index in range(len(steps)):
            batch = steps[index]
            torch.set_num_threads(threads)
            yield batch
        return
    yield from DataLoader(
        steps, batch_size=None, num_workers=config.loader_workers, prefetch_factor=4
    )


def _save(
    run_dir: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    ema: Ema,
    step: int,
    config: LoopConfig,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.state.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    aside = run_dir / f"{CHECKPOINT}.part"
    metadata = {"step": str(step), "config": json.dumps(asdict(config))}
    save_file(tensors, aside, metadata=metadata)
    aside.replace(run_dir / CHECKPOINT)


def _resume(run_dir: Path, model: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema) -> int:
    file = run_dir / CHECKPOINT
    if not file.is_file():
        return 0
    step, tensors = read_checkpoint(file)
    model.load_state_dict(tensors["model"])
    for name, value in tensors["ema"].items():
        ema.state[name].copy_(value)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors["optimiser"].items():
        index, _, moment = name.partition(".")
        moments.setdefault(int(index), {})[moment] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
    log.info("train_resumed", run=run_dir.name, step=step)
    return step


def read_checkpoint(file: Path) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint: its step, and its tensors under "model", "ema" and "optimiser"."""
    from safetensors import safe_open

    with safe_open(os.fspath(file), "pt") as handle:
        step = int(handle.metadata()["step"])
    tensors: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimiser": {}}
    for name, value in load_file(file).items():
        part, _, rest = name.partition(".")
        tensors[part][rest] = value
    return step, tensors
