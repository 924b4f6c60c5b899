"""Stops the servers of a stack when the process that owns it is gone, however it went.

Run as `python -m worker.localstack.guard FOLDER [EXTRA…]` with a pipe from the owner as standard
input: the kernel closes the pipe even on `kill -9`. The folders are then deleted as well when the
stack was a temporary one, which is what naming them in EXTRA says.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

from worker.localstack.processes import Process


def stop_servers(folder: Path) -> None:
    """Stop whatever the folder's pidfiles name, the last that was started first."""
    found = [(Process.read(pidfile), pidfile) for pidfile in folder.glob("*.pid")]
    for process, pidfile in sorted(found, key=lambda one: -one[0].started if one[0] else 0):
        if process is not None:
            process.stop()
        pidfile.unlink(missing_ok=True)


def main(folder: str, *doomed: str) -> None:
    """Wait for the end of the owner, then clean up."""
    for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(interruption, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stop_servers(Path(folder))
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
