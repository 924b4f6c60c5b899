"""Worker processes under test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from tests.support.waiting import eventually
from worker.settings import PREFIX, child_environment
from worker.telemetry.health import READY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from worker.settings import Settings


class WorkerProcess:
    """`python -m <module>` with settings in its environment; its log lines can be read.

    `code` is the folder of an earlier release's code, if that is to run.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        module: str = "tests.support.processes.memory_worker",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        code: Path | None = None,
    ) -> None:
        self._run_dir: Path = settings.observability.run_dir
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self.log = self._run_dir.with_name(f"{module}.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=code,  # where `-m` looks first
                env=_environment(settings, code) | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if error is not None:
            sys.stderr.write(self.log.read_text()[-20_000:])

    @property
    def ready(self) -> bool:
        """Whether the worker is warm and takes messages."""
        if self.process.poll() is not None:
            message = f"The worker exited with {self.process.returncode}:\n{self.log.read_text()}"
            raise AssertionError(message)
        return (self._run_dir / READY).exists()

    def wait_until_ready(self) -> Self:
        """Wait until the worker takes messages."""
        eventually(lambda: self.ready, timeout_s=120, what="a ready worker")
        return self

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def stop(self) -> int:
        """Ask for a warm shutdown and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _environment(settings: Settings, code: Path | None) -> dict[str, str]:
    """Return the settings; an earlier release gets those that it knows, as its operator wrote."""
    told = child_environment(settings)
    if code is None:
        return told
    asked = "from worker.settings import Settings, in_force; print(*in_force(Settings()))"
    known = subprocess.check_output([sys.executable, "-c", asked], cwd=code, text=True).split()
    return {
        name: value for name, value in told.items() if not name.startswith(PREFIX) or name in known
    }
