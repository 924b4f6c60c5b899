"""How the processes of the service are started over a local stack."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from worker.localstack.commands import BridgeServer, CommandServer, ConsoleServer
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
