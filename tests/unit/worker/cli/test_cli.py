"""The command line's frame: exit codes, error lines, imports, choice of services."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.command_line import run

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The default folder of the local stack is relative: a developer's stack must not be seen here.
    monkeypatch.chdir(tmp_path)


def test_config_prints_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`config` prints environment names with their values and hides secrets."""
    monkeypatch.setenv("UNLATENT_REDIS__URL", "redis://:hunter2@cache.example/0")
    assert run(monkeypatch, "config") == 0
    printed = capsys.readouterr().out
    assert "UNLATENT_REDIS__URL=redis://:***@cache.example/0\n" in printed
    assert "UNLATENT_SCORING__MAX_BATCH=8\n" in printed


def test_an_error_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong setting ends the command with code 1 and one line on standard error."""
    monkeypatch.setenv("UNLATENT_REDIS__ULR", "x")
    assert run(monkeypatch, "config") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("unlatent: UNLATENT_REDIS__ULR is not a setting")


def test_an_unexpected_error_is_one_masked_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug shows no traceback unless asked for, and never a password."""

    def fail(_settings: object) -> dict[str, str]:
        raise RuntimeError("cannot reach redis://:hunter2@cache.example/0")

    monkeypatch.setattr("worker.settings.in_force", fail)
    assert run(monkeypatch, "config") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unexpected RuntimeError" in error
    assert "hunter2" not in error
    assert run(monkeypatch, "--traceback", "config") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "hunter2" not in error


@pytest.mark.parametrize("arguments", [["nonsense"], ["config", "--nonsense"]])
def test_a_wrong_usage_exits_with_2(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Unknown commands and options are usage errors."""
    assert run(monkeypatch, *arguments) == 2


def test_a_named_stack_must_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--stack` with a folder that holds no stack is an error, not a fallback."""
    assert run(monkeypatch, "--stack", "nowhere", "config") == 1
    assert "no local stack in nowhere" in capsys.readouterr().err


def test_addresses_of_the_environment_and_a_named_stack_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sources for an address are refused instead of mixed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "stack.env").write_text("UNLATENT_REDIS__URL=redis://:a@127.0.0.1:1/0\n")
    monkeypatch.setenv("UNLATENT_REDIS__URL", "redis://cache.example/0")
    assert run(monkeypatch, "--stack", "mine", "config") == 1
    assert "use one of them" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    """`unlatent --help` starts without torch, Celery, SQLAlchemy, boto3 or NumPy."""
    program = (
        "import sys\n"
        "from worker.cli import build_app\n"
        "build_app()\n"
        "heavy = {'torch', 'celery', 'sqlalchemy', 'boto3', 'numpy', 'PIL', 'psycopg'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, f"imported: {done.stderr}"


@pytest.mark.parametrize("module", ["typer", "pydantic", "numpy", "torch._C"])
def test_an_interrupted_import_shows_no_traceback(tmp_path: Path, module: str) -> None:
    """Ctrl-C while modules are imported, light or heavy, ends with 130 and without a word."""
    (tmp_path / "a.png").touch()
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "worker", "check", str(tmp_path / "a.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        said = [line for line in process.stderr if not line.startswith("import time:")]
        assert (process.stdout.read(), said) == ("", [])
    assert process.returncode == 130


def test_an_error_is_one_line_of_bounded_length(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long an error is, its line shows how it begins and ends."""

    def fail(_settings: object) -> dict[str, str]:
        raise RuntimeError(f"began{'x' * 20_000}ended")

    monkeypatch.setattr("worker.settings.in_force", fail)
    assert run(monkeypatch, "config") == 1
    error = capsys.readouterr().err
    assert len(error) < 2500
    for part in ("began", "characters cut", "ended"):
        assert part in error


def test_no_module_swallows_an_interruption(tmp_path: Path) -> None:
    """A module that goes on whatever is raised while it is imported does not go on."""
    (tmp_path / "stubborn.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept:\n    pass\n"
    )
    program = (
        "import signal, sys\n"
        "from worker.cli.context import ending\n"
        "signal.signal(signal.SIGINT, ending)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import stubborn\n"
        "print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_database_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`migrate` says which address does not answer, and shows no password."""
    url = "postgresql+psycopg://u:hunter2@127.0.0.1:1/x"
    monkeypatch.setenv("UNLATENT_POSTGRES__OWNER_URL", url)
    assert run(monkeypatch, "migrate") == 1
    error = capsys.readouterr().err
    assert error.startswith("unlatent: UNLATENT_POSTGRES__OWNER_URL: connection failed")
    assert "hunter2" not in error
