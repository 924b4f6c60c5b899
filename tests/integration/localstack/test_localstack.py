"""The local stack: what it starts, who may use it, and how it ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from sqlalchemy import text

from tests.support.waiting import eventually
from worker.localstack import LocalStack, LocalStackError
from worker.localstack.commands import CommandServer, ConsoleServer
from worker.localstack.processes import Process, ServerEnded
from worker.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.settings import Settings

REPOSITORY = Path(__file__).parents[3]


def test_the_services_answer_with_the_settings_of_a_test(
    settings: Settings, engine: Engine, redis_client: redis.Redis, s3_client: Any
) -> None:
    """The fixtures hand out a database for the service role, a Redis and an empty bucket."""
    with engine.connect() as connection:
        row = connection.execute(text("SELECT current_user, current_database()")).one()
    assert row.current_user == "unlatent_app"
    assert row.current_database.startswith("test_")
    assert redis_client.ping()
    listing = s3_client.list_objects_v2(Bucket=settings.s3.buckets[0])
    assert listing["KeyCount"] == 0


def test_postgres_and_redis_refuse_strangers(stack: LocalStack) -> None:
    """Neither server lets a local user in without the stack's password."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{stack.postgres.port}/postgres")
    with (
        redis.Redis(port=stack.redis.port) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_files_with_secrets_are_private(stack: LocalStack) -> None:
    """Only the stack's user can read its addresses, secrets, logs and data."""
    private = [
        stack.addresses.env_file,
        stack.folder / "stack.json",
        stack.redis.data,
        stack.redis.log,
        stack.postgres.data,
        stack.s3.data,
    ]
    assert [path for path in private if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_killed_server_comes_back_on_its_port_with_its_data(
    stack: LocalStack, engine: Engine, redis_client: redis.Redis, s3_client: Any, bucket: str
) -> None:
    """`kill -9` and start keep rows, keys and objects, and every client's address."""
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS survivors AS SELECT 1 AS one")
    redis_client.set(bucket, "here")
    redis_client.waitaof(1, 0, 5000)
    s3_client.put_object(Bucket=bucket, Key="a/b", Body=b"here")
    ports = [server.port for server in stack.servers]
    for server in stack.servers:
        server.kill()
        assert not server.running
        server.start()
    assert [server.port for server in stack.servers] == ports
    with psycopg.connect(stack.postgres.dsn()) as connection:
        row = connection.execute("SELECT one FROM survivors").fetchone()
    assert row == (1,)
    assert redis_client.get(bucket) == b"here"
    assert s3_client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"here"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1


def test_an_erased_redis_has_lost_its_keys(stack: LocalStack, redis_client: redis.Redis) -> None:
    """Killing, erasing and starting Redis is what a Redis without persistence goes through."""
    redis_client.set("lost", "soon")
    stack.redis.kill()
    stack.redis.erase()
    stack.redis.start()
    assert redis_client.get("lost") is None


def test_a_detached_stack_is_found_again_by_its_folder(tmp_path: Path) -> None:
    """A second stack object over the folder sees the servers, repairs a dead one and stops all."""
    first = LocalStack(tmp_path, durable=False)
    first.start(buckets=["one"])
    second = LocalStack(tmp_path, durable=False)
    try:
        assert second.running
        assert second.addresses.environment() == first.addresses.environment()
        first.redis.kill()
        assert not second.running
        second.start(buckets=["one", "two"])
        assert second.running
        with pytest.raises(LocalStackError, match="another process"):
            LocalStack(tmp_path, owned=True).start()
    finally:
        second.stop()
    assert not first.running
    first.stop()
    first.delete()


def test_a_stale_pidfile_names_nobody(tmp_path: Path) -> None:
    """A pidfile whose process id now belongs to another process is not taken for the server's."""
    pidfile = tmp_path / "redis.pid"
    Process(os.getpid(), 1, signal.SIGTERM).write(pidfile)
    assert Process.read(pidfile) is None
    pidfile.write_text("12")
    assert Process.read(pidfile) is None


def test_a_server_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    """A server that exits at once is reported with the path of its log, and nothing stays."""
    stack = LocalStack(tmp_path, durable=False)
    stack.start()
    stack.stop()
    (stack.postgres.data / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(LocalStackError, match=r"postgres exited while starting.*postgres\.log"):
        stack.start()
    assert not any(server.running for server in stack.servers)
    stack.delete()


def test_a_process_that_died_is_told_from_one_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches learns which died, and its last words; `down` elsewhere is no death."""
    words = ["/bin/sh", "-c", "echo last words; exec sleep 600"]
    monkeypatch.setattr(CommandServer, "command", lambda _: words)
    monkeypatch.setattr(ConsoleServer, "ready", lambda _: True)
    stack = LocalStack(tmp_path, durable=False)
    stack.start()
    try:
        given = stack.addresses.pointed_here(load_settings(), buckets=["uploads"], evidence=None)
        stack.start_commands(given, *stack.commands)
        assert stack.check()
        assert stack.bridge.process is not None
        eventually(lambda: stack.bridge.log.stat().st_size > 0, what="the words")
        stack.bridge.process.kill()
        with pytest.raises(ServerEnded, match=r"bridge ended .*code -9.*bridge\.log") as died:
            stack.check()
        assert died.value.last_lines == ["last words"]
        stack.start_commands(given, stack.bridge)
        assert stack.check()
    finally:
        LocalStack(tmp_path).stop()
    assert not stack.check()
    stack.stop()  # which only reaps its children
    stack.delete()
    assert not tmp_path.exists()


def test_an_owned_stack_ends_with_its_owner() -> None:
    """After `kill -9` of the owner no server runs and the temporary folder is gone."""
    program = (
        "import sys\n"
        "from worker.localstack import LocalStack\n"
        "stack = LocalStack.temporary()\n"
        "stack.start()\n"
        "print(stack.folder, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        processes = [Process.read(path) for path in folder.glob("*.pid")]
        owner.kill()
    assert len(processes) == 3
    eventually(
        lambda: not any(process is not None and process.running for process in processes),
        what="the end of the servers",
    )
    eventually(lambda: not folder.exists(), what="the removal of the folder")
