"""One of several processes that train together, under `accelerate launch`; takes a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from training.fit.data_parallel import process_group
from training.fit.loop import LoopConfig, fit

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 12
CONFIG = LoopConfig(
    steps=STEPS, warmup_steps=3, checkpoint_every=4, loader_workers=0, bfloat16=False
)


class Points:
    """A batch that two processes cannot halve: nine points and one number each."""

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        """Make the points of one step."""
        generator = torch.Generator().manual_seed(seed * 1000 + step)
        inputs = torch.randn(9, 3, 4, 4, generator=generator)
        return {"inputs": inputs, "targets": inputs.mean(dim=(1, 2, 3))}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error, and the mean answer."""
        answer = model(batch["inputs"]).flatten()
        loss = functional.mse_loss(answer, batch["targets"])
        return {"loss": loss, "answer": answer.detach().mean()}


def network() -> nn.Module:
    """A network whose gradient is the mean over the batch, however that is cut."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 1))


def main() -> None:
    """Train in the folder named; each process leaves the names of its last threads there."""
    folder = Path(sys.argv[1])
    with process_group("cpu") as leads:
        if leads:
            fit(network(), Points(), CONFIG, folder)
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    (folder / ("led" if leads else "helped")).write_text("\n".join(threads))


if __name__ == "__main__":
    main()
