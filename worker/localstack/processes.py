"""Server processes: found by pidfile, started in a session of their own, stopped by signal.

A pidfile names the process by its id and its start time, so that a recycled id is never taken for
the server that wrote the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from detection.errors import UnlatentError

if TYPE_CHECKING:
    from collections.abc import Callable

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.02
#: So many lines of the log of a process that died are shown, from so many bytes at its end.
LAST_LINES = 20
LAST_BYTES = 64 * 1024
LOOPBACK = "127.0.0.1"


class LocalStackError(UnlatentError):
    """A server of the local stack could not be started or stopped."""


class ServerEnded(LocalStackError):
    """A server does not run any more, although nobody stopped it; `last_lines` end its log.

    They are empty where the log is gone.
    """

    def __init__(self, message: str, *, log: Path) -> None:
        super().__init__(message)
        self.last_lines = _last_lines(log)


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system account a server runs as when it must not run as ours."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Process:
    """One server process; `started` is its start time in clock ticks since boot."""

    pid: int
    started: int
    stop_signal: int

    @classmethod
    def read(cls, pidfile: Path) -> Self | None:
        """Return the running process that the pidfile names, or None when there is none."""
        try:
            process = cls(**json.loads(pidfile.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return process if process.running else None

    def write(self, pidfile: Path) -> None:
        """Write the pidfile in one step."""
        partial = pidfile.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(pidfile)

    @property
    def running(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return _start_time(self.pid) == self.started

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Ask the process to stop and wait; True when it did, False when it had to be killed."""
        self.send(self.stop_signal)
        if wait_until(lambda: not self.running, timeout_s=timeout_s):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """SIGKILL the process and everything below it, and wait until all of it is gone."""
        family = [self, *self._descendants()]
        for process in family:
            process.send(signal.SIGKILL)
        wait_until(lambda: not any(process.running for process in family), timeout_s=STOP_TIMEOUT_S)

    def send(self, signal_number: int) -> None:
        """Send a signal unless the process is gone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def _descendants(self) -> list[Process]:
        # PostgreSQL's backends are sessions of their own: a process group would miss them.
        parents = _parents()
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        starts = {pid: _start_time(pid) for pid in found[1:]}
        return [
            Process(pid, started, signal.SIGKILL)
            for pid, started in starts.items()
            if started is not None
        ]


class Server:
    """One server of the stack: how it is started, when it is ready, how it is stopped.

    A server keeps its port and its data over stop, kill and start. It may have been started by
    another process: everything but exit codes works through the pidfile.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout_s: ClassVar[float] = START_TIMEOUT_S
    stop_timeout_s: ClassVar[float] = STOP_TIMEOUT_S

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.account: Account | None = None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pidfile(self) -> Path:
        """Where the server's process is named."""
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        """Where the server's output is appended."""
        return self.folder / f"{self.name}.log"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all that the server may leave in the stack's folder."""
        return (f"{self.name}.pid", f"{self.name}.partial", f"{self.name}.log")

    @property
    def clean_codes(self) -> tuple[int, ...]:
        """The exit codes of a process that ends well when it is told to stop now."""
        return (0,)

    @property
    def process(self) -> Process | None:
        """The running process, whoever started it."""
        return Process.read(self.pidfile)

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self.process is not None

    def prepare(self) -> None:
        """Make what the server needs on disk; called before each start."""

    def command(self) -> list[str]:
        """Return the argument vector."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the server; nothing of ours is inherited."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def ready(self) -> bool:
        """Whether the server answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server unless it runs, and wait until it is ready.

        Raises `LocalStackError` naming the log when it exits or is not ready in time.
        """
        if self.running:
            return
        if not port_is_free(self.port):
            self.port = free_port()
        self.prepare()
        try:
            self._launch()
        except _ExitedEarly:
            # The one harmless cause: somebody took the port between our look and the server's.
            if port_is_free(self.port):
                raise
            self.port = free_port()
            self._launch()

    def check(self) -> None:
        """Raise `ServerEnded` when the server does not run."""
        if self.running:
            return
        code = None if self._child is None else self._child.poll()
        how = "" if code is None else f" with exit code {code}"
        message = f"{self.name} ended by itself{how}; its log is {self.log}"
        raise ServerEnded(message, log=self.log)

    def stop(self) -> None:
        """Stop the server cleanly; no error when it does not run.

        Raises `LocalStackError` when it had to be killed or, started by us, exited with an error.
        """
        process, clean_codes = self.process, self.clean_codes
        stopped = process is None or process.stop(timeout_s=self.stop_timeout_s)
        code = self._reap()
        if not stopped:
            message = f"{self.name} did not stop within {self.stop_timeout_s:g} s and was killed"
            raise LocalStackError(f"{message}; its log is {self.log}")
        if process is not None and code not in clean_codes:
            message = f"{self.name} stopped with exit code {code}; its log is {self.log}"
            raise LocalStackError(message)

    def kill(self) -> None:
        """`kill -9` the server and its children; `start` brings it back on its port and data."""
        if (process := self.process) is not None:
            process.kill()
        self._reap()

    def _launch(self) -> None:
        account = self.account
        with self.log.open("ab") as log:
            self.log.chmod(0o600)
            child = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.working_directory(),
                env=self.environment(),
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        self._child = child
        started = _start_time(child.pid)
        if started is not None:
            Process(child.pid, started, self.stop_signal).write(self.pidfile)
        wait_until(lambda: child.poll() is not None or self.ready(), timeout_s=self.start_timeout_s)
        if child.poll() is not None:
            self._reap()
            raise _ExitedEarly(f"{self.name} exited while starting; its log is {self.log}")
        if not self.ready():
            self.kill()
            message = f"{self.name} was not ready within {self.start_timeout_s:g} s"
            raise LocalStackError(f"{message}; its log is {self.log}")

    def working_directory(self) -> Path:
        """Return the directory the server runs in."""
        return self.folder

    def _reap(self) -> int:
        """Forget the process; return its exit code when it was our child, else 0."""
        self.pidfile.unlink(missing_ok=True)
        child, self._child = self._child, None
        return 0 if child is None else child.wait()


class _ExitedEarly(LocalStackError):
    """A server exited while it was starting."""


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Poll until the condition holds; return whether it did before the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: connections of a predecessor that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def accepts(port: int) -> bool:
    """Whether something accepts connections on the port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            end = file.read()
    except OSError:
        return []
    return end.decode(errors="replace").splitlines()[-LAST_LINES:]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the state on (field 3 of proc(5))."""
    try:
        text = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def _start_time(pid: int) -> int | None:
    """Return field 22 of proc(5), or None for no process and for a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else int(stat[19])


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    return {pid: int(stat[1]) for pid, stat in stats.items() if stat is not None}
