"""Workers and bridges that tests stop and kill, and what is known of the processes they leave."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.localstack.processes import Process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from worker.settings import Settings


def state_of(pid: int) -> str:
    """Return the state letter of a process: T for stopped; empty when there is none."""
    try:
        text = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return text[text.rindex(")") + 2]


def family(pid: int) -> list[Process]:
    """Return a process's descendants, each by its id and start time."""
    return Process(pid, 0, signal.SIGKILL)._descendants()


def changed(settings: Settings, section: str, **values: object) -> Settings:
    """Return settings with other values in one section."""
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


def clock_off(hours: int) -> dict[str, str]:
    """Return the environment in which a process and its children have the time of day so far off.

    The preloaded library answers for the C library, whoever asks; how long things take stays true.
    """
    package = importlib.util.find_spec("libfaketime")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{hours:+d}h",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


class Crew:
    """The processes of one test; all are killed at its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.left_behind: list[Process] = []
        self._stack = ExitStack()
        self._count = 0
        self._logs: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        for log in self._logs:  # pytest shows it with a failed test only
            sys.stderr.write(f"--- {log}\n{log.read_text()[-8_000:]}\n")

    def worker(
        self,
        *arguments: str,
        settings: Settings | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Start a worker; it is not waited for."""
        return self._start(
            "tests.support.faults.stopping_process",
            "worker",
            *arguments,
            settings=settings,
            environment=environment,
        )

    def bridge(self, *arguments: str, settings: Settings | None = None) -> WorkerProcess:
        """Start a bridge; it is not waited for."""
        return self._start(
            "tests.support.faults.stopping_process", "bridge", *arguments, settings=settings
        )

    def earlier(self, code: Path, *arguments: str) -> WorkerProcess:
        """Start the worker or the bridge of an earlier release; it is not waited for."""
        return self._start("tests.failure.faulty", *arguments, code=code)

    def service(
        self,
        role: str,
        *,
        settings: Settings | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Start `unlatent worker`, `bridge` or `beat`; it is not waited for."""
        return self._start("worker", role, settings=settings, environment=environment)

    def _start(
        self,
        module: str,
        *arguments: str,
        settings: Settings | None = None,
        environment: Mapping[str, str] | None = None,
        code: Path | None = None,
    ) -> WorkerProcess:
        # Each in a folder of its own: liveness files and logs are one process's.
        self._count += 1
        chosen = settings or self.settings
        run_dir = chosen.observability.run_dir / f"{arguments[0]}-{self._count}" / "run"
        own = chosen.model_copy(
            update={"observability": chosen.observability.model_copy(update={"run_dir": run_dir})}
        )
        process = WorkerProcess(
            own, module=module, arguments=arguments, environment=environment, code=code
        )
        self._logs.append(process.log)
        return self._stack.enter_context(process)

    def kill(self, process: WorkerProcess) -> None:
        """`kill -9` it and remember what it leaves behind."""
        self.left_behind += family(process.process.pid)
        process.process.kill()
        process.process.wait()

    def kill_when_stopped(self, process: WorkerProcess) -> None:
        """Wait until it has stopped itself at its fault point, then kill it there."""
        self.wait_until_stopped(process)
        self.kill(process)

    def wait_until_stopped(self, process: WorkerProcess) -> None:
        """Wait until it has stopped itself at its fault point."""
        pid = process.process.pid

        def stopped() -> bool:
            assert process.process.poll() is None, process.log.read_text()
            return state_of(pid) == "T"

        eventually(stopped, timeout_s=90, what="a process stopped at its fault point")

    def resume(self, process: WorkerProcess) -> None:
        """Let a stopped process go on."""
        os.kill(process.process.pid, signal.SIGCONT)
