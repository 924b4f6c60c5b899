"""The training loop that every network shares: EMA, schedule, checkpoints, resumption.

A `Task` says what a step's batch is and what it costs; `fit` does the rest. A batch is a function
of (seed, step), so that a run that was killed and resumed sees what an uninterrupted one sees.
Checkpoints are safetensors (weights, average, optimiser moments) written aside and renamed into
place; curves lie beside them.
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
from training.files import written_aside
from training.fit.data_parallel import build_gradients
from training.fit.gradients import rows
from training.fit.tensorboard import TRAINING, CurveWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_log = structlog.get_logger(__name__)

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
        """Return named scalar parts; the one named "loss", a mean over rows, is minimised."""


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

    Where several processes were launched, only the one that leads comes here
    (`training.fit.data_parallel`).

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
    gradients = build_gradients(
        model, task.loss, seed=config.seed, bfloat16=config.bfloat16, device=device
    )
    with CurveWriter(run_dir, TRAINING) as curves:
        journal = _ProgressLog(run_dir.name, config, curves)
        for step, batch in enumerate(_batches(task, config, start), start):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            model.train()
            parts = gradients.compute(model, batch, step)
            loss = parts["loss"]
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss became {loss} at step {step} of {run_dir}")
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimiser.step()
            ema.update(model, step)
            done = step + 1
            journal.note(done, images=rows(batch), parts=parts)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _save(run_dir, model, optimiser, ema, done, config)
            if on_step is not None:
                on_step(done)
            if stop is not None and stop(done, ema.state):
                _log.info("training_stopped_early", run=run_dir.name, step=done, of=config.steps)
                break
    return ema.state


class _ProgressLog:
    """What a run says of itself: a log line and a point of its curves, every so many steps.

    Rates are those since the last line.
    """

    def __init__(self, run: str, config: LoopConfig, curves: CurveWriter) -> None:
        self._run, self._config, self._curves = run, config, curves
        self._smooth = math.nan
        self._since, self._steps, self._images = time.monotonic(), 0, 0

    def note(self, done: int, *, images: int, parts: Mapping[str, float]) -> None:
        """Hear of a step of so many images; `parts` are those of its loss."""
        loss, config = parts["loss"], self._config
        self._smooth = loss if math.isnan(self._smooth) else 0.98 * self._smooth + 0.02 * loss
        self._steps, self._images = self._steps + 1, self._images + images
        if done % config.log_every and done != config.steps:
            return
        now = time.monotonic()
        rates = {
            "steps_per_s": self._steps / (now - self._since),
            "images_per_s": self._images / (now - self._since),
        }
        _log.info(
            "training_step_done",
            run=self._run,
            step=done,
            of=config.steps,
            smooth=round(self._smooth, 4),
            **{name: round(rate, 2) for name, rate in rates.items()},
            **{name: round(part, 4) for name, part in parts.items()},
        )
        learning_rate = config.learning_rate * schedule(done - 1, config)
        self._curves.add(done, {**parts, **rates, "learning_rate": learning_rate})
        self._since, self._steps, self._images = now, 0, 0


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
    metadata = {"step": str(step), "config": json.dumps(asdict(config))}
    with written_aside(run_dir / CHECKPOINT) as aside:
        save_file(tensors, aside, metadata=metadata)


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
    _log.info("training_resumed", run=run_dir.name, step=step)
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
