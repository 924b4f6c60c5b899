"""`unlatent up --all` leaves nothing running, whatever ends it; idle processes stand for ours."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.localstack import LocalStack
from worker.localstack.processes import Process
from worker.telemetry.health import READY

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[3]

#: The command line, but that every process of the service sleeps.
PROGRAM = """
from worker.__main__ import main
from worker.localstack.commands import CommandServer, ConsoleServer

CommandServer.command = lambda _: ["/bin/sleep", "600"]
ConsoleServer.ready = lambda _: True
main()
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    """The stack of a folder in which nothing runs yet; it is gone after the test."""
    stack = LocalStack(tmp_path / "stack")
    yield stack
    LocalStack(stack.folder).stop()
    stack.delete()


@pytest.fixture
def up(stack: LocalStack) -> Iterator[subprocess.Popen[str]]:
    """`unlatent up --all`, once all processes were started."""
    # A test run under nohup ignores SIGHUP, and what it starts would, too.
    heard = ["env", "--default-signal=HUP"]
    with subprocess.Popen(
        [*heard, sys.executable, "-c", PROGRAM, "--stack", str(stack.folder), "up", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        assert any("is loading its model" in line for line in process.stdout)
        yield process
        process.kill()


def _ended(up: subprocess.Popen[str], stack: LocalStack) -> tuple[int, str]:
    """Return exit code and errors of the command, once it has ended; nothing runs any more."""
    assert up.stderr is not None
    error = up.stderr.read()
    code = up.wait()
    assert not list(stack.folder.glob("*.pid"))
    return code, error


def _processes(stack: LocalStack) -> list[Process]:
    found = [Process.read(pidfile) for pidfile in stack.folder.glob("*.pid")]
    processes = [process for process in found if process is not None]
    assert len(processes) == 8
    return processes


def test_a_terminal_that_is_closed(stack: LocalStack, up: subprocess.Popen[str]) -> None:
    """SIGHUP ends it as Ctrl-C does, also where the kernel and the shell both send it."""
    processes = _processes(stack)
    assert up.stdout is not None
    up.send_signal(signal.SIGHUP)
    assert up.stdout.readline() == "stopping\n"
    up.send_signal(signal.SIGHUP)
    up.stdout.close()
    assert _ended(up, stack) == (128 + signal.SIGHUP, "")
    assert not any(process.running for process in processes)


def test_a_reader_that_leaves(stack: LocalStack, up: subprocess.Popen[str]) -> None:
    """As `unlatent up --all | head` does: what cannot be told any more stops everything."""
    processes = _processes(stack)
    assert up.stdout is not None
    up.stdout.close()
    stack.worker.run_folder.mkdir(parents=True)
    (stack.worker.run_folder / READY).touch()  # so that something is to be told
    assert _ended(up, stack) == (1, "")
    assert not any(process.running for process in processes)


def test_a_death_without_a_log(stack: LocalStack, up: subprocess.Popen[str]) -> None:
    """A process that died is named also where its log is gone."""
    processes = _processes(stack)
    stack.bridge.log.unlink()
    assert stack.bridge.process is not None
    stack.bridge.process.kill()
    code, error = _ended(up, stack)
    assert code == 1
    assert error.startswith("unlatent: bridge ended by itself with exit code -9; its log is ")
    assert not any(process.running for process in processes)


def test_a_second_one_leaves_the_first_alone(stack: LocalStack, up: subprocess.Popen[str]) -> None:
    """`up --all` beside one that runs ends with an error, and everything goes on."""
    processes = _processes(stack)
    second = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--stack", str(stack.folder), "up", "--all"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert second.returncode == 1
    assert "runs already: `unlatent status` shows it" in second.stderr
    assert all(process.running for process in processes)
    assert up.poll() is None
