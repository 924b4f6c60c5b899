"""How long uploads wait for a worker: at 70 % load, and with priority behind a crowd.

Bridge, worker, Postgres, Redis and object storage are the real processes; the forward pass sleeps.
Objects are stored beforehand, and their events come at fixed times whatever became of the earlier
ones. Times count from when an event was due to the verdict's `scored_at`, and are told in times of
a full batch, so that a slow machine says the same until its processors are used up.

1. At 70 % of what the device allows: median and 99th percentile of an upload's whole time.
2. Behind a crowd that fills every batch: the time until the batch of a priority upload begins.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Double, cast, func, select

from tests.benchmarks.bench_scale import Fleet, machine_ticks
from tests.benchmarks.photographlike import make_files
from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.ledger.tables import Image, VerdictRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILES = 8
#: Of what the device allows.
LOAD = 0.7
WARM_UP = 16


def announce_at(fleet: Fleet, events: Mapping[str, str], *, every_s: float) -> dict[str, float]:
    """Announce events by key at fixed times; return when each was due, in seconds since 1970."""
    begun = time.time() + 0.5
    due = {key: begun + number * every_s for number, key in enumerate(events)}
    for key, event in events.items():
        time.sleep(max(0.0, due[key] - time.time()))
        fleet.announce(event)
    return due


def ends(fleet: Fleet, prefix: str) -> dict[str, tuple[float, float]]:
    """Return by key when the verdict was stored and the seconds that its batch ran."""
    forward_ms = cast(VerdictRow.timings_ms["forward"].astext, Double)
    asked = (
        select(Image.key, cast(func.extract("epoch", VerdictRow.scored_at), Double), forward_ms)
        .join(Image, Image.id == VerdictRow.image_id)
        .where(Image.key.startswith(prefix))
    )
    with fleet.engine.begin() as connection:
        return {key: (at, ms / 1000) for key, at, ms in connection.execute(asked)}


def wait_for(fleet: Fleet, prefix: str, count: int) -> dict[str, tuple[float, float]]:
    """Wait until so many uploads have their verdicts."""
    eventually(lambda: len(ends(fleet, prefix)) == count, timeout_s=900, what="the verdicts")
    return ends(fleet, prefix)


def measure_load(fleet: Fleet, files: Sequence[bytes], chosen: argparse.Namespace) -> list[float]:
    """Return the seconds of each upload at 70 % of what the device allows."""
    bodies = {f"load/{n}.jpg": files[n % FILES] for n in range(chosen.images)}
    events = {key: fleet.store(key, body) for key, body in bodies.items()}
    due = announce_at(fleet, events, every_s=chosen.device_s / LOAD)
    found = wait_for(fleet, "load/", len(events))
    return [found[key][0] - due[key] for key in events]


def measure_priority(
    fleet: Fleet, files: Sequence[bytes], chosen: argparse.Namespace
) -> list[float]:
    """Return the seconds until the batch of each priority upload began, behind a crowd."""
    batch_s = chosen.device_s * chosen.max_batch
    # An odd share of a batch apart, so that they come at every moment of one.
    every_s = 2.3 * batch_s
    crowd = [
        fleet.store(f"crowd/{n}.jpg", files[n % FILES])
        for n in range(int((chosen.priority + 4) * every_s / chosen.device_s))
    ]
    events = {
        key: fleet.store(key, files[n % FILES], priority=True)
        for n, key in enumerate(f"urgent/{n}.jpg" for n in range(chosen.priority))
    }
    before = fleet.verdicts()
    fleet.announce(*crowd)
    eventually(lambda: fleet.verdicts() >= before + chosen.max_batch, what="a worker that is busy")
    due = announce_at(fleet, events, every_s=every_s)
    found = wait_for(fleet, "urgent/", len(events))
    return [found[key][0] - found[key][1] - due[key] for key in events]


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--priority", type=int, default=30, help="priority uploads")
    parser.add_argument("--device-s", type=float, default=0.1, help="device time of one image")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    chosen = parser.parse_args()
    files = make_files(FILES, chosen.side)
    with (
        tempfile.TemporaryDirectory() as folder,
        Fleet(Path(folder), device_s=chosen.device_s, max_batch=chosen.max_batch) as fleet,
        WorkerProcess(
            fleet.in_folder("worker"),
            module="tests.support.processes.sleeping_worker",
            arguments=[str(chosen.device_s)],
        ) as worker,
    ):
        eventually(lambda: worker.ready, timeout_s=900, what="a ready worker")
        fleet.announce(*(fleet.store(f"warm/{n}.jpg", files[n % FILES]) for n in range(WARM_UP)))
        wait_for(fleet, "warm/", WARM_UP)
        ticks, busy = machine_ticks()
        took = measure_load(fleet, files, chosen)
        waited = measure_priority(fleet, files, chosen)
        ticks_after, busy_after = machine_ticks()
    batch_s = chosen.device_s * chosen.max_batch
    cuts = statistics.quantiles(took, n=100)
    sys.stdout.write(
        f"{chosen.images} JPEG files of {chosen.side} px, {chosen.device_s:g} s of device time an"
        f" image, a full batch {batch_s:g} s, {os.cpu_count()} processors,"
        f" {(busy_after - busy) / (ticks_after - ticks):.0%} of them busy\n"
        f"at {LOAD:.0%} load: median {cuts[49] / batch_s:.2f}, p99 {cuts[98] / batch_s:.2f} of a"
        " full batch's time from event to verdict\n"
        f"{chosen.priority} priority uploads behind a crowd: their batch begins after"
        f" {statistics.median(waited) / batch_s:.2f} of a batch's time, at most"
        f" {max(waited) / batch_s:.2f}\n"
    )


if __name__ == "__main__":
    main()
