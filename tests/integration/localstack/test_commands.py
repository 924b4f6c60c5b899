"""`unlatent up`, `status`, `migrate` and `down` as a person uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.localstack import LocalStack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Unlatent = Callable[..., subprocess.CompletedProcess[str]]

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def unlatent(tmp_path: Path) -> Iterator[Unlatent]:
    """Run `unlatent --stack <folder of this test>`; the stack is gone after the test."""
    folder = tmp_path / "stack"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "worker", "--stack", str(folder), *arguments],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
        )

    yield run
    stack = LocalStack(folder)
    if stack.exists:
        stack.stop()
        stack.delete()


def test_a_stack_outlives_the_command_that_started_it(unlatent: Unlatent) -> None:
    """`up` leaves migrated services running, other commands use them, `down` ends them."""
    assert unlatent("status").returncode == 1

    up = unlatent("up")
    assert up.returncode == 0, up.stderr
    status = unlatent("status")
    assert status.returncode == 0
    assert status.stdout.count("127.0.0.1:") == 3
    assert "warning" not in status.stderr

    assert unlatent("up").stdout == up.stdout
    migrate = unlatent("migrate")
    assert migrate.returncode == 0, migrate.stderr
    assert "using the local stack" in migrate.stderr
    config = unlatent("config")
    port = status.stdout.split("redis", 1)[1].split("127.0.0.1:", 1)[1].split()[0]
    assert f"UNLATENT_REDIS__URL=redis://:***@127.0.0.1:{port}/0\n" in config.stdout

    down = unlatent("down")
    assert down.returncode == 0, down.stderr
    assert unlatent("status").returncode == 1
    config = unlatent("config")
    assert config.returncode == 1
    assert "is down" in config.stderr
    assert unlatent("down", "--delete").returncode == 0
    assert "no local stack" in unlatent("status").stdout


def test_only_a_stack_is_deleted_and_only_what_is_its_own(
    unlatent: Unlatent, tmp_path: Path
) -> None:
    """`down --delete` refuses other folders as they are, and leaves foreign files in a stack's."""
    folder = tmp_path / "stack"
    folder.mkdir()
    precious = folder / "precious.txt"
    precious.write_text("mine")
    refused = unlatent("down", "--delete")
    assert refused.returncode == 1
    assert "nothing was removed" in refused.stderr
    assert "no local stack" in unlatent("down").stdout
    assert "no local stack" in unlatent("status").stdout
    assert list(folder.iterdir()) == [precious]

    up = unlatent("up")
    assert up.returncode == 0, up.stderr
    deleted = unlatent("down", "--delete")
    assert deleted.returncode == 0, deleted.stderr
    assert "stays, with what is not ours: precious.txt" in deleted.stdout
    assert list(folder.iterdir()) == [precious]
    assert precious.read_text() == "mine"
