"""`unlatent check` here against an earlier revision, in turns on the same files and machine.

`make bench-against REVISION=30a0aa0` checks the revision out into a temporary folder and runs both
commands with this environment's packages. What a file costs is the difference
between a call on many files and one on few, so that loading counts for nothing; what starting costs
is a call on one file, beside `python -c "import torch"`.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of one size: how many are loaded beside, and how many are counted."""

    name: str
    width: int
    height: int
    few: int
    many: int


KINDS = (
    Kind("512-pixel JPEGs", 512, 512, 8, 72),
    Kind("16-megapixel JPEGs", 4928, 3264, 2, 14),
)


def jpeg(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG of a photograph's entropy."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-10, 11, (height, width, 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_files(folder: Path, kind: Kind) -> list[Path]:
    """Write the files of a kind, all with bytes of their own; return them."""
    bodies = [jpeg(kind.width, kind.height, seed) for seed in range(4)]
    files = []
    for number in range(kind.many):
        files.append(folder / f"{kind.width}-{number}.jpg")
        files[-1].write_bytes(bodies[number % len(bodies)] + str(number).encode())
    return files


def call(code: Path | None, *arguments: object) -> tuple[float, float]:
    """Run Python with the code of a folder; return the seconds and processor seconds it took."""
    environment = dict(os.environ) | ({"PYTHONPATH": str(code)} if code else {})
    before = os.times()
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-P", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    used = after.children_user + after.children_system
    return time.perf_counter() - begun, used - before.children_user - before.children_system


def check(code: Path, files: list[Path]) -> tuple[float, float]:
    """Run `unlatent check` of a folder of code on files."""
    return call(code, "-m", "worker", "check", "--format", "jsonl", *files)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revision", default="30a0aa0")
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        earlier = folder / "code"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", str(earlier), chosen.revision], check=True)
        try:
            measure(folder, earlier, chosen.revision, chosen.turns)
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)


def measure(folder: Path, earlier: Path, revision: str, turns: int) -> None:
    """Compare the two for every kind of file, and what starting takes."""
    sides = {revision: earlier, "here": REPOSITORY}
    print(f"{os.cpu_count()} processors, medians of {turns} turns")
    for kind in KINDS:
        files = write_files(folder, kind)
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(turns):
            for side, code in sides.items():
                few, _ = check(code, files[: kind.few])
                many, _ = check(code, files)
                taken[side].append(1000 * (many - few) / (kind.many - kind.few))
        medians = {side: statistics.median(sample) for side, sample in taken.items()}
        print(
            f"{kind.name}: {revision} {medians[revision]:.0f} ms a file, here"
            f" {medians['here']:.0f} ms, {medians[revision] / medians['here']:.2f} times as fast"
        )
    one = write_files(folder, Kind("one", 512, 512, 0, 1))
    started = {
        side: statistics.median(check(code, one)[1] for _ in range(turns))
        for side, code in sides.items()
    }
    torch_s = statistics.median(call(None, "-c", "import torch")[1] for _ in range(turns))
    help_s = statistics.median(call(REPOSITORY, "-m", "worker", "--help")[1] for _ in range(turns))
    print(
        f"processor seconds of a call on one file: {revision} {started[revision]:.2f}, here"
        f" {started['here']:.2f}, {started['here'] / torch_s:.2f} times `import torch`"
        f" ({torch_s:.2f}); of --help {help_s:.2f}"
    )


if __name__ == "__main__":
    main()
