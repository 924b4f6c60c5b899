"""Several processes, one GPU each, that train one network: `accelerate launch … -m worker train`.

The first process leads and alone does everything but the gradients: it makes the batches, steps the
optimiser, keeps averages and checkpoints, and stops. For each step it sends the others the weights
and the batch; each computes the gradients of its share, and those add up to the gradients of the
whole. So a run is the same run, and resumes, on any number of processes; only batch normalisation
takes its statistics from a share. Between two trainings the others wait. The processes trust each
other, as those of `torch.distributed` must: its messages are pickles, which are never stored.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import torch
from torch import Tensor, distributed, nn

from detection.errors import SettingsError
from training.fit.gradients import Gradients, rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from training.fit.gradients import Loss

_log = structlog.get_logger(__name__)

#: A data set may be aligned for days before the first step.
WAIT = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainingStart:
    """What a training begins with: the network and its loss, as torch saves them."""

    saved: bytes
    seed: int
    bfloat16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    number: int
    batch: dict[str, Tensor]


@contextmanager
def process_group(device: str) -> Iterator[bool]:
    """Join the processes of a launch; yields whether this one leads.

    In the others it returns when the leader is done: what they had to do has been done by then. A
    process that was not launched with others leads.
    """
    if not distributed.is_torchelastic_launched():
        yield True
        return
    # An optimizer's first step imports it. If a group exists by then, torch 2.15 leaves the threads
    # of gloo running when the group is destroyed, and a process that exits with them may abort.
    import torch._dynamo
    from accelerate import PartialState

    on_cpu = torch.device(device).type == "cpu"
    # Messages go over gloo, so that those who wait use no GPU.
    distributed.init_process_group("gloo" if on_cpu else "cpu:gloo,cuda:nccl", timeout=WAIT)
    PartialState(cpu=on_cpu)  # makes "cuda" mean another device in each process
    leads = distributed.get_rank() == 0
    if not leads:
        _follower_loop(device)
    yield leads
    if leads:
        _broadcast(None)
    distributed.destroy_process_group()


def build_gradients(
    model: nn.Module, loss: Loss, *, seed: int, bfloat16: bool, device: str
) -> Gradients | SharedGradients:
    """Return what computes a training's gradients: together with the others, if there are any."""
    own = Gradients(loss, seed=seed, bfloat16=bfloat16, device=device)
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own
    saved = io.BytesIO()
    torch.save((model, loss), saved)
    _broadcast(_TrainingStart(saved=saved.getvalue(), seed=seed, bfloat16=bfloat16))
    return SharedGradients(own)


class SharedGradients:
    """Computes the gradients of batches with the other processes of the launch."""

    def __init__(self, own: Gradients) -> None:
        self._own = own

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], step: int) -> dict[str, float]:
        """Leave the gradients of a batch in the model; returns the parts of the loss."""
        if rows(batch) < distributed.get_world_size():
            raise SettingsError(
                f"a batch of {rows(batch)} cannot be shared by {distributed.get_world_size()}"
                " processes: launch fewer"
            )
        _broadcast(_Step(number=step, batch=dict(batch)))
        return _together(self._own, model, batch, step)


def _follower_loop(device: str) -> None:
    """Compute shares of gradients until the leader is done."""
    rank = distributed.get_rank()
    _log.info("gradient_worker_joined", process=rank, of=distributed.get_world_size())
    model, own = nn.Module(), None
    while (told := _receive()) is not None:
        if isinstance(told, _TrainingStart):
            model, loss = torch.load(
                io.BytesIO(told.saved),
                map_location=device,
                weights_only=False,  # from the leader, which runs the same command
            )
            model.train()
            # Draws inside the loss are for other images than the leader's.
            seed = told.seed + (rank << 16)
            own = Gradients(loss, seed=seed, bfloat16=told.bfloat16, device=device)
        elif own is not None:
            _together(own, model, told.batch, told.number)


def _together(
    own: Gradients, model: nn.Module, batch: Mapping[str, Tensor], step: int
) -> dict[str, float]:
    """Compute one's share with the leader's weights, and add up everybody's."""
    weights = [parameter.detach() for parameter in model.parameters()]
    sent = _flat(weights)
    distributed.broadcast(sent, src=0)
    _fill(weights, sent)
    rank, count = distributed.get_rank(), distributed.get_world_size()
    share = {name: value.tensor_split(count)[rank] for name, value in batch.items()}
    parts = own.compute(model, share, step)
    weight = rows(share) / rows(batch)
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    summed = _flat(gradients) * weight
    distributed.all_reduce(summed)
    _fill(gradients, summed)
    figures = torch.tensor(list(parts.values()), dtype=torch.float64) * weight
    distributed.all_reduce(figures)
    return dict(zip(parts, figures.tolist(), strict=True))


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _fill(tensors: list[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _broadcast(message: _TrainingStart | _Step | None) -> None:
    distributed.broadcast_object_list([message], src=0, device=torch.device("cpu"))


def _receive() -> _TrainingStart | _Step | None:
    box: list[_TrainingStart | _Step | None] = [None]
    distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
