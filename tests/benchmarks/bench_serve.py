"""What an image costs beside the forward pass by HTTP and through the worker, and its wait.

Both sides are the real processes with a forward pass that sleeps, in one run:

* **worker**: event in the ingest list → bridge → ledger → queue → worker → verdict, over the real
  Postgres, Redis and object storage (`tests.benchmarks.bench_scale`);
* **serve**: 32 clients that send the same files to `POST /v1/check`, each after its last answer
  came. The clients are another process, whose processor time is not counted.

Then, at 70 % of what the device allows, requests come at fixed times whatever became of the earlier
ones; a request's time counts from when it was due. The batch's time is that of a full batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import urllib3

from tests.benchmarks.bench_scale import Fleet, cpu_s
from tests.benchmarks.photographlike import make_files
from tests.support.serving.serve_process import ServeProcess
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENTS = 32
FILES = 8
#: Of what the device allows.
LOAD = 0.7
#: Sent before anything is measured: processes start, pools fill.
WARM_UP = 32


def send(http: urllib3.PoolManager, url: str, file: bytes, number: int) -> float:
    """Send one file, made one of its own by bytes behind its end; return the seconds it took."""
    begun = time.perf_counter()
    answer = http.request("POST", f"{url}/v1/check", body=file + str(number).encode())
    if answer.status != 200:
        raise AssertionError(answer.data)
    return time.perf_counter() - begun


def send_closed(url: str, images: int, side: int) -> dict[str, float]:
    """Have 32 clients send so many images, each after its last answer; return what it took."""
    files, numbers = make_files(FILES, side), itertools.count()
    http = urllib3.PoolManager(maxsize=CLIENTS, retries=False, block=True)
    begun = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(
            clients.map(
                lambda n: send(http, url, files[n % FILES], n),
                itertools.islice(numbers, images),
            )
        )
    return {"seconds": time.perf_counter() - begun}


def send_open(url: str, images: int, side: int, every_s: float) -> dict[str, float]:
    """Send images at fixed times; return quantiles of the seconds from when each was due."""
    files = make_files(FILES, side)
    http = urllib3.PoolManager(maxsize=CLIENTS, retries=False, block=True)
    begun = time.perf_counter() + 0.5
    taken: list[float] = []
    lock = threading.Lock()

    def at_its_time(number: int) -> None:
        due = begun + number * every_s
        time.sleep(max(0.0, due - time.perf_counter()))
        send(http, url, files[number % FILES], images + number)
        with lock:
            taken.append(time.perf_counter() - due)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(at_its_time, range(images)))
    cuts = statistics.quantiles(taken, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def in_another_process(*arguments: object) -> dict[str, float]:
    """Run the clients in a process of their own and return what they say."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_serve", "--clients"]
    told = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(told.stdout)
    return found


def measure_serve(folder: Path, chosen: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Return processor milliseconds an image, and quantiles of the time at 70 % load."""
    settings = Settings.model_validate(
        {
            "scoring": {"device": "cpu", "max_batch": chosen.max_batch},
            "intake": {"processes": 1},
            "observability": {"log_level": "warning", "run_dir": folder / "serve" / "run"},
        }
    )
    with ServeProcess(settings, arguments=[str(chosen.device_s)]) as server:
        server.wait_until_ready()
        pids = [server.process.pid]
        in_another_process("closed", server.url, WARM_UP, chosen.side)
        begun, used = time.monotonic(), cpu_s(pids)
        time.sleep(5)
        idle = (cpu_s(pids) - used) / (time.monotonic() - begun)
        begun, used = time.monotonic(), cpu_s(pids)
        in_another_process("closed", server.url, chosen.images, chosen.side)
        spent = cpu_s(pids) - used - idle * (time.monotonic() - begun)
        waits = in_another_process(
            "open", server.url, chosen.images, chosen.side, chosen.device_s / LOAD
        )
    return 1000 * spent / chosen.images, waits


def clients(arguments: Sequence[str]) -> None:
    """Be the clients."""
    kind, url, images, side, *every = arguments
    if kind == "closed":
        told = send_closed(url, int(images), int(side))
    else:
        told = send_open(url, int(images), int(side), float(every[0]))
    print(json.dumps(told))


def main() -> None:
    """Measure both sides and print them."""
    if sys.argv[1:2] == ["--clients"]:
        clients(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--device-s", type=float, default=0.05, help="device time of one image")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    chosen = parser.parse_args()
    files = make_files(FILES, chosen.side)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with Fleet(place, device_s=chosen.device_s, max_batch=chosen.max_batch) as fleet:
            round_ = fleet.measure(1, [files[n % FILES] for n in range(chosen.images)])
        served_ms, waits = measure_serve(place, chosen)
    worker_ms = {name: 1000 * spent for name, spent in round_.cpu_s_per_image.items()}
    batch_s = chosen.device_s * chosen.max_batch
    print(
        f"{chosen.images} JPEG files of {chosen.side} px, {chosen.device_s:g} s of device time an"
        f" image, batches of {chosen.max_batch}, {os.cpu_count()} processors\n"
        f"worker's path: {sum(worker_ms.values()):.1f} ms of processor time an image ("
        + ", ".join(f"{name} {spent:.1f}" for name, spent in worker_ms.items())
        + f"); {round_.transactions_per_image:.1f} transactions and"
        f" {round_.statements_per_image:.1f} statements of PostgreSQL\n"
        f"serve: {served_ms:.1f} ms, {served_ms / sum(worker_ms.values()):.2f} of that,"
        f" {served_ms / worker_ms['workers']:.2f} of the worker process alone\n"
        f"at {LOAD:.0%} load: median {waits['p50']:.3f} s, p99 {waits['p99']:.3f} s,"
        f" {waits['p99'] / batch_s:.2f} of a full batch's {batch_s:g} s"
    )


if __name__ == "__main__":
    main()
