"""What processes occupy: resident memory, threads, file handles, sockets."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.faults.process_crew import family

if TYPE_CHECKING:
    from tests.support.processes.worker_process import WorkerProcess


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process occupies at a moment."""

    resident_bytes: int = 0
    threads: int = 0
    handles: int = 0
    sockets: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        """Return what both occupy together; shared pages count twice."""
        return Footprint(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def footprint(process: WorkerProcess) -> Footprint:
    """Return what a process and its descendants occupy together."""
    pid = process.process.pid
    whole = Footprint()
    for member in (pid, *(child.pid for child in family(pid))):
        # A decoding process may be replaced while it is looked at.
        with suppress(FileNotFoundError, ProcessLookupError):
            whole += _of(Path("/proc", str(member)))
    return whole


def _of(folder: Path) -> Footprint:
    lines = (folder / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    links = []
    for handle in (folder / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(handle.readlink()))
    return Footprint(
        resident_bytes=1024 * int(status.get("VmRSS", "0 kB").split()[0]),
        threads=int(status["Threads"]),
        handles=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
    )
