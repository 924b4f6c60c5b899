"""The private memory of a scoring worker and its decoding processes, over many images.

The worker is `unlatent worker` with the bundle `small` on the processor, with bridge, Postgres,
Redis and object storage beside it. Private is what /proc/PID/smaps_rollup calls Private_Dirty:
pages that this process has written to. Pages of libraries that no other process happens to map are
not counted. What `import torch` alone takes is measured beside it. Flat is judged from the first
look after the warm-up on: the worker by its own memory, the decoders by the largest, because each
is replaced after 1,000 images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.bench_scale import Fleet
from tests.benchmarks.photographlike import make_files
from tests.support.faults.process_crew import family
from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually

FILES = 8
LOOKS = 10
MIB = 2**20
_PRINTS_OWN = (
    "from pathlib import Path; {imports}; print(Path('/proc/self/smaps_rollup').read_text())"
)


def private_bytes(rollup: str) -> int:
    """Return the private bytes that an smaps_rollup states."""
    (kib,) = (line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
    return 1024 * int(kib)


def private_of(pid: int) -> int:
    """Return the private bytes of a process that runs."""
    return private_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())


def private_after(imports: str) -> int:
    """Return the private bytes of a new interpreter after these imports."""
    program = [sys.executable, "-c", _PRINTS_OWN.format(imports=imports)]
    return private_bytes(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


def decoders_of(worker: WorkerProcess) -> list[int]:
    """Return the private bytes of each decoding process of a worker."""
    found = []
    for child in family(worker.process.pid):
        try:
            command = Path(f"/proc/{child.pid}/cmdline").read_bytes()
            if b"worker.decoding.process" in command:
                found.append(private_of(child.pid))
        except (FileNotFoundError, ProcessLookupError):
            continue  # replaced meanwhile
    return found


def score_more(fleet: Fleet, files: list[bytes], first: int, count: int) -> None:
    """Store and announce images, and wait for their verdicts."""
    before = fleet.verdicts()
    for n in range(first, first + count):
        fleet.announce(fleet.store(f"{n}.jpg", files[n % FILES]))
    eventually(lambda: fleet.verdicts() >= before + count, timeout_s=3600, what="the verdicts")


def main() -> None:
    """Measure and print a line a look, then what the targets of docs/performance.md ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--warm-up", type=int, default=200)
    chosen = parser.parse_args()
    files = make_files(FILES, chosen.side)
    torch = private_after("import torch")
    each = max(1, chosen.images // LOOKS)
    sys.stdout.write(f"import torch alone: {torch / MIB:.1f} MiB private\n")
    looks: list[tuple[int, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Fleet(Path(folder), device_s=0.0, max_batch=8) as fleet,
        WorkerProcess(fleet.in_folder("worker"), module="worker", arguments=["worker"]) as worker,
    ):
        eventually(lambda: worker.ready, timeout_s=900, what="a ready worker")
        score_more(fleet, files, 0, chosen.warm_up)
        for look in range(LOOKS + 1):
            if look:
                score_more(fleet, files, chosen.warm_up + (look - 1) * each, each)
            looks.append((private_of(worker.process.pid), max(decoders_of(worker), default=0)))
            sys.stdout.write(
                f"after {chosen.warm_up + look * each} images: worker {looks[-1][0] / MIB:.1f} MiB"
                f" private, {(looks[-1][0] - torch) / MIB:.1f} beyond torch; largest decoder"
                f" {looks[-1][1] / MIB:.1f}\n"
            )
            sys.stdout.flush()
    sizes = [worker_bytes for worker_bytes, _ in looks]
    most, last = (size / sizes[0] - 1 for size in (max(sizes), sizes[-1]))
    sys.stdout.write(
        f"over {each * LOOKS} images: at most {(max(sizes) - torch) / MIB:.1f} MiB beyond torch;"
        f" against the first look {most:+.1%} at most and {last:+.1%} at the end; a decoder at most"
        f" {max(size for _, size in looks) / MIB:.1f} MiB\n"
    )


if __name__ == "__main__":
    main()
