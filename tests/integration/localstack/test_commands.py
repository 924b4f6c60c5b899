"""`unlatent up`, `status`, `migrate` and `down` as a person uses them."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from worker.cli.context import Context
from worker.localstack import LocalStack
from worker.scoring.evidence import evidence_bucket
from worker.settings import Settings, load_settings
from worker.storage.s3 import S3Storage

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


def _in_a_shell(env_file: Path, settings: Settings) -> None:
    """A shell that sources the file has the very settings that are read from it."""
    script = f"set -eua; . {shlex.quote(str(env_file))}; exec env -0"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    found = dict(line.partition("=")[::2] for line in done.stdout.split("\0"))
    assert json.loads(found["UNLATENT_S3__BUCKETS"]) == list(settings.s3.buckets)
    assert found["UNLATENT_REDIS__URL"] == settings.redis.url.get_secret_value()
    assert found["UNLATENT_POSTGRES__URL"] == settings.postgres.url.get_secret_value()


def _moderate_at_once(unlatent: Unlatent, told: str, folder: Path) -> None:
    """After `up` a person reviews, and connects as it says, without another step or secret."""
    for command in (["verdicts"], ["review", "list"], ["reasons"]):
        done = unlatent(*command)
        assert done.returncode == 0, done.stderr
        assert done.stderr == f"using the local stack in {folder}\n"
    assert "real_original" in done.stdout
    done = unlatent("retain")  # as the service, and with two looks at the settings
    assert (done.returncode, done.stderr) == (0, f"using the local stack in {folder}\n")
    secrets = re.findall(r"[0-9a-f]{40,}", (folder / "stack.env").read_text())
    assert secrets
    assert not any(secret in told for secret in secrets)
    line = re.search(r"PGPASSFILE=(\S+) psql -h (\S+) -p (\S+) -U (\S+) (\S+)", told)
    assert line is not None
    passwords, host, port, user, database = line.groups()
    assert stat.S_IMODE(Path(passwords).stat().st_mode) == 0o600
    with psycopg.connect(
        passfile=passwords, host=host, port=port, user=user, dbname=database
    ) as connection:
        assert connection.execute("SELECT lead FROM moderation.me").fetchall() == [(True,)]
    settings = load_settings(folder / "stack.env")
    _in_a_shell(folder / "stack.env", settings)
    bucket = evidence_bucket(settings)  # which raises for one that may not be written to
    assert bucket is not None
    assert f"evidence is kept in {bucket}" in told
    S3Storage(settings.s3).put(bucket, "a.png", b"", content_type="image/png")


def test_the_environment_decides_on_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets of the environment go with the stack's addresses; evidence needs one of them."""
    (tmp_path / "stack.env").write_text(
        'UNLATENT_S3__REGION=here\nUNLATENT_S3__BUCKETS=["uploads", "evidence"]\n'
        "UNLATENT_MODERATION__EVIDENCE_BUCKET=evidence\n"
    )
    monkeypatch.setattr(LocalStack, "running", True)

    def chosen() -> tuple[str, tuple[str, ...], str | None]:
        settings = Context(stack_option=tmp_path).settings()
        return settings.s3.region, settings.s3.buckets, settings.moderation.evidence_bucket

    assert chosen() == ("here", ("uploads", "evidence"), "evidence")
    monkeypatch.setenv("UNLATENT_S3__BUCKETS", '["mine"]')
    assert chosen() == ("here", ("mine",), None)
    monkeypatch.setenv("UNLATENT_MODERATION__EVIDENCE_BUCKET", "mine")
    assert chosen() == ("here", ("mine",), "mine")


def test_a_stack_outlives_the_command_that_started_it(unlatent: Unlatent, tmp_path: Path) -> None:
    """`up` leaves migrated services running, other commands use them, `down` ends them."""
    assert unlatent("status").returncode == 1

    up = unlatent("up")
    assert up.returncode == 0, up.stderr
    status = unlatent("status")
    assert status.returncode == 0
    assert status.stdout.count("127.0.0.1:") == 3
    assert "0 announced, 0 waiting, 0 refused; no verdict yet" in status.stdout
    assert "warning" not in status.stderr

    assert unlatent("up").stdout == up.stdout
    _moderate_at_once(unlatent, up.stdout, tmp_path / "stack")
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
