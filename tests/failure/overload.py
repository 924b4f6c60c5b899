"""Twice what a deployment can do, for minutes: `python -m tests.failure.overload --minutes 5`.

On a stack of its own a worker with a slow forward pass first gets a crowd of uploads at once: what
it ends a second is what it can do. Then `unlatent stress` sends twice that, a tenth of it with
priority, waits for the end of it all, and sends half of it for half a minute more. The run fails
when priority uploads or those after the crowd were late, or anything was lost or done twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.failure.chaos import own_stack
from tests.support.faults.footprint import footprint
from tests.support.faults.process_crew import Crew
from worker.settings import child_environment

if TYPE_CHECKING:
    from worker.settings import Settings

_FORWARD_S = 1.5
#: A priority upload may find a batch under way and another one waiting, before its own is done; the
#: rest is for a machine that does other work besides.
_LATE_S = 3 * _FORWARD_S + 5.5
_CROWD = 60


def stress(settings: Settings, *arguments: str) -> dict[str, Any]:
    """Run `unlatent stress` without broken files; return its numbers, or raise what it says."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "worker", "stress", "--out", folder),
                *("--bad", "0", "--drain", "3600", *arguments),
            ],
            env=child_environment(settings),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        sys.stdout.write(done.stdout)
        done.check_returncode()
        numbers: dict[str, Any] = json.loads((Path(folder) / "stress.json").read_text())
        return numbers


def run(minutes: float) -> None:
    """Measure, overload, judge; raises `CalledProcessError` when a limit is broken."""
    with own_stack() as (_, settings), Crew(settings) as crew:
        crew.service("beat")
        bridge = crew.bridge()
        worker = crew.worker("--forward-s", str(_FORWARD_S)).wait_until_ready()
        crowd = stress(settings, "--load", f"{_CROWD}x1")
        able = crowd["uploads_ended"] / crowd["elapsed_s"]
        sys.stdout.write(f"can do {able:.2f} a second; now twice that for {minutes:g} minutes\n")
        before = footprint(bridge) + footprint(worker)
        stress(
            settings,
            *("--load", f"{2 * able:.3f}x{60 * minutes:g}", "--after", f"{able / 2:.3f}x30"),
            *("--priority", "0.1", "--seed", "2"),
            *("--max-priority-p95", f"{_LATE_S:g}", "--max-after-p95", f"{_LATE_S:g}"),
        )
        grown = (footprint(bridge) + footprint(worker)).resident_bytes - before.resident_bytes
        sys.stdout.write(f"bridge and worker have grown by {grown / 2**20:.1f} MiB\n")


def main() -> int:
    """Overload as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    try:
        run(options.minutes)
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
