"""How the processes of the service are started over a local stack."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from worker.localstack.commands import (
    BeatServer,
    BridgeServer,
    CommandServer,
    ConsoleServer,
    TrainerServer,
    WorkerServer,
)
from worker.localstack.processes import LocalStackError
from worker.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", [BridgeServer, ConsoleServer])
def test_modules_in_the_directory_of_the_caller_shadow_nothing(
    tmp_path: Path, kind: type[CommandServer]
) -> None:
    """With names of ours and of libraries in that directory our own command still answers."""
    for name in ("worker", "typer", "redis"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign module')\n")
    server = kind(tmp_path / "stack", settings=Settings)
    done = subprocess.run(
        [*server.command(), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=server.environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f" worker {server.name} " in done.stdout


@pytest.mark.parametrize("kind", [WorkerServer, BridgeServer, BeatServer, TrainerServer])
def test_a_process_that_was_killed_speaks_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CommandServer]
) -> None:
    """A new process is up when it says so, whatever the one before has left."""
    monkeypatch.setattr(CommandServer, "command", lambda _: ["/bin/sleep", "600"])
    server = kind(tmp_path, settings=Settings)
    sign = server.run_folder / str(kind.sign)
    sign.parent.mkdir(parents=True)
    sign.touch()
    server.start()
    try:
        assert not server.up
        sign.touch()
        assert server.up
    finally:
        server.kill()


def test_only_a_process_that_is_not_up_may_end_of_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is up ends what is under way, so that its death of SIGTERM is an error."""
    monkeypatch.setattr(CommandServer, "command", lambda _: ["/bin/sleep", "600"])
    server = BridgeServer(tmp_path, settings=Settings)
    server.start()
    server.stop()
    server.start()
    server.run_folder.mkdir(parents=True)
    (server.run_folder / str(server.sign)).touch()
    with pytest.raises(LocalStackError, match="bridge stopped with exit code -15"):
        server.stop()
