"""Several processes that train one network: what they end with, and what they are sent."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection.aligned import AlignedNet
from detection.egre import Egre
from detection.networks.branch_configs import EgreConfig
from tests.support.bundles.tiny_bundle import ALIGNED, tiny_autoencoder, tiny_predictor
from tests.support.processes.data_parallel_process import CONFIG, STEPS, Points, network
from training.data.augmentation import AugmentationConfig
from training.data.manifest import Entry
from training.data.samples import Sample
from training.fit.aligned_task import AlignedBatch, AlignedTask
from training.fit.data_parallel import process_group
from training.fit.lare_task import LareSample, LareTask
from training.fit.loop import CHECKPOINT, fit, read_checkpoint
from training.fit.stay_positive import HeadOnly
from training.fit.tensorboard import CURVES, TRAINING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

LAUNCH = (
    "launch --multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no"
    " --dynamo_backend no --main_process_port 0 -m tests.support.processes.data_parallel_process"
)


class Killed(Exception):
    """Stands in for the end of the process."""


def last_figures(folder: Path) -> dict[str, float]:
    """Loss and mean answer of the last step, from the curves."""
    reader = EventAccumulator(str(folder / CURVES / TRAINING))
    reader.Reload()
    last = {name: reader.Scalars(name)[-1] for name in ("loss", "answer")}
    assert {event.step for event in last.values()} == {STEPS}
    return {name: event.value for name, event in last.items()}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    """They resume what one process left, share a batch of nine, and get weights and loss of one.

    Neither ends with threads of the group: these may abort a process that ends.
    """

    def kill(done: int) -> None:
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        fit(network(), Points(), CONFIG, tmp_path / "shared", on_step=kill)
    accelerate = Path(sys.executable).with_name("accelerate")
    launched = subprocess.run(
        [accelerate, *LAUNCH.split(), tmp_path / "shared"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "training_resumed" in launched.stdout
    for name in ("led", "helped"):
        assert "gloo" not in (tmp_path / "shared" / name).read_text()

    whole = fit(network(), Points(), CONFIG, tmp_path / "whole")
    step, shared = read_checkpoint(tmp_path / "shared" / CHECKPOINT)
    assert step == STEPS
    for name, value in whole.items():
        torch.testing.assert_close(shared["ema"][name], value, rtol=1e-4, atol=1e-6)
    expected = last_figures(tmp_path / "whole")
    assert last_figures(tmp_path / "shared") == pytest.approx(expected, rel=1e-4)


def test_a_process_alone_leads() -> None:
    """Without a launcher nothing is joined and nobody is waited for."""
    with process_group("cpu") as leads:
        assert leads


def tasks() -> list[AlignedTask | LareTask]:
    """Both branches' tasks, each with a megabyte of pixels."""
    entries = [
        Entry(path=Path(label), label=label, set="", family="", group=label)
        for label in ("real", "generated")
    ]
    pixels = np.zeros((512, 512, 3), dtype=np.uint8)
    samples = [Sample(entry, pixels, lossy=False) for entry in entries]
    items = [LareSample(entry, pixels, np.zeros((4, 64, 64), np.float16)) for entry in entries]
    return [AlignedTask(samples, AugmentationConfig(), AlignedBatch(pairs=0)), LareTask(items)]


def test_images_are_not_sent_to_other_processes() -> None:
    """What the others get of a task is its loss alone."""
    for task in tasks():
        assert len(pickle.dumps(task.loss)) < 1000


@pytest.mark.parametrize(
    "build",
    [
        lambda: AlignedNet(ALIGNED),
        lambda: HeadOnly(AlignedNet(ALIGNED)),
        lambda: Egre(EgreConfig()),
        tiny_autoencoder,
        tiny_predictor,
    ],
)
def test_every_network_can_be_sent(build: Callable[[], nn.Module]) -> None:
    """It arrives with its weights."""
    sent, buffer = build(), io.BytesIO()
    torch.save(sent, buffer)
    buffer.seek(0)
    arrived: dict[str, Tensor] = torch.load(buffer, weights_only=False).state_dict()
    for name, value in sent.state_dict().items():
        torch.testing.assert_close(arrived[name], value, rtol=0, atol=0)
