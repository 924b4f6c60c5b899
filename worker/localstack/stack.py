"""The local stack: the three servers together, their secrets, their database and their buckets."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib.resources
import json
import secrets
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import SecretStr

from worker.localstack.commands import (
    CONSOLE_PORT,
    RUN,
    SERVE_PORT,
    BeatServer,
    BridgeServer,
    ConsoleServer,
    ServeServer,
    WorkerServer,
)
from worker.localstack.folder import claim, claim_more, is_stack, locked, remove
from worker.localstack.processes import LOOPBACK, LocalStackError, Server
from worker.localstack.servers import PostgresServer, S3Server, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    import psycopg

    from worker.localstack.commands import CommandServer
    from worker.settings import Settings

DATABASE = "unlatent"
OWNER = "unlatent_owner"
APP = "unlatent_app"
OPERATOR = "unlatent_operator"
MODERATOR = "local_moderator"


def _secret() -> str:
    return secrets.token_hex(20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a stack keeps over restarts: its secrets and, where they stay free, its ports."""

    superuser_password: str = field(default_factory=_secret)
    owner_password: str = field(default_factory=_secret)
    app_password: str = field(default_factory=_secret)
    redis_password: str = field(default_factory=_secret)
    s3_access_key_id: str = field(default_factory=_secret)
    s3_secret_access_key: str = field(default_factory=_secret)
    ports: dict[str, int] = field(default_factory=dict)


class LocalStack:
    """PostgreSQL, Valkey and S3 in one folder.

    A stack is *detached* (`unlatent up`: it outlives the process that started it, and a later one
    finds it by its folder) or *owned* (its servers end with this process, even after `kill -9`).
    `temporary` makes an owned stack whose folder is deleted at the end.

    `postgres`, `redis` and `s3` can each be stopped, killed and started by themselves.
    """

    def __init__(self, folder: Path, *, owned: bool = False, durable: bool = True) -> None:
        self.folder = folder.absolute()
        self.owned = owned
        self.temporary_folder = False
        self._identity = self._load_identity()
        ports = self._identity.ports
        self.postgres = PostgresServer(
            self.folder,
            password=self._identity.superuser_password,
            durable=durable,
            port=ports.get(PostgresServer.name),
        )
        self.redis = ValkeyServer(
            self.folder, password=self._identity.redis_password, port=ports.get(ValkeyServer.name)
        )
        self.s3 = S3Server(
            self.folder,
            access_key_id=self._identity.s3_access_key_id,
            secret_access_key=self._identity.s3_secret_access_key,
            port=ports.get(S3Server.name),
        )
        self.worker, self.bridge, self.beat = (
            kind(self.folder, settings=self._settings_given)
            for kind in (WorkerServer, BridgeServer, BeatServer)
        )
        self.console, self.serve = (
            kind(self.folder, settings=self._settings_given, port=ports.get(kind.name, usual))
            for kind, usual in ((ConsoleServer, CONSOLE_PORT), (ServeServer, SERVE_PORT))
        )
        self._settings: Settings | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    def temporary(cls) -> Self:
        """Return an owned stack in a new folder that goes when the stack stops."""
        stack = cls(Path(tempfile.mkdtemp(prefix="unlatent-")), owned=True, durable=False)
        stack.temporary_folder = True
        return stack

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers in the order in which they are stopped."""
        return (self.s3, self.redis, self.postgres)

    @property
    def commands(self) -> tuple[CommandServer, ...]:
        """The service's processes over the servers, in the order in which they are stopped."""
        return (self.beat, self.serve, self.bridge, self.worker, self.console)

    @property
    def exists(self) -> bool:
        """Whether a stack was started in this folder."""
        return is_stack(self.folder)

    @property
    def running(self) -> bool:
        """Whether all servers run."""
        return all(server.running for server in self.servers)

    @property
    def env_file(self) -> Path:
        """The stack's addresses and secrets as `UNLATENT_…` settings, readable by its user only."""
        return self.folder / "stack.env"

    def environment(self) -> dict[str, str]:
        """Return the settings that point a process at this stack."""
        return {
            "UNLATENT_POSTGRES__URL": self.database_url(),
            "UNLATENT_POSTGRES__OWNER_URL": self.owner_url(),
            "UNLATENT_POSTGRES__MODERATOR_URL": self.moderator_url(),
            "UNLATENT_POSTGRES__OPERATOR_URL": self.operator_url(),
            "UNLATENT_REDIS__URL": self.redis.url,
            "UNLATENT_S3__ENDPOINT_URL": self.s3.endpoint_url,
            "UNLATENT_S3__REGION": self.s3.region,
            "UNLATENT_S3__ACCESS_KEY_ID": self.s3.access_key_id,
            "UNLATENT_S3__SECRET_ACCESS_KEY": self.s3.secret_access_key,
            "UNLATENT_SQS__ACCESS_KEY_ID": self.s3.access_key_id,
            "UNLATENT_SQS__SECRET_ACCESS_KEY": self.s3.secret_access_key,
        }

    def database_url(self, database: str = DATABASE) -> str:
        """Return the service role's URL for a database of this stack."""
        password = self._identity.app_password
        return self.postgres.url(user=APP, password=password, database=database)

    def owner_url(self, database: str = DATABASE) -> str:
        """Return the owner's URL, for migrations, for a database of this stack."""
        password = self._identity.owner_password
        return self.postgres.url(user=OWNER, password=password, database=database)

    def moderator_url(self, database: str = DATABASE) -> str:
        """Return the URL of a moderator's login; what it may see, `moderators.allow` says."""
        password = self._derived_password(MODERATOR)
        return self.postgres.url(user=MODERATOR, password=password, database=database)

    def operator_url(self, database: str = DATABASE) -> str:
        """Return the URL of the operator, who says who moderates and which policy rules."""
        password = self._derived_password(OPERATOR)
        return self.postgres.url(user=OPERATOR, password=password, database=database)

    @property
    def password_file(self) -> Path:
        """The moderator's password, as libpq's PGPASSFILE, readable by its user only."""
        return self.folder / "pgpass"

    def _derived_password(self, role: str) -> str:
        # Derived and not kept, so that a stack of an earlier release has one, too.
        key = self._identity.superuser_password.encode()
        return hmac.new(key, role.encode(), hashlib.sha256).hexdigest()

    def start(
        self, *, buckets: Sequence[str] = ("uploads",), settings: Mapping[str, str] | None = None
    ) -> None:
        """Start what does not run yet; afterwards roles, the database and the buckets exist.

        `settings` stand in the file of addresses beside these.

        Raises `LocalStackError`; what this call had started is stopped again.
        """
        claim(self.folder, self._names)
        with locked(self.folder):
            claim_more(self.folder, self._names)
            self._agree()
            if self.owned and self._guard is None:
                if any(server.running for server in self.servers):
                    raise LocalStackError(f"another process runs a local stack in {self.folder}")
                self._guard = self._start_guard()
            found = [server for server in self.servers if not server.running]
            try:
                with ThreadPoolExecutor(len(self.servers)) as pool:
                    list(pool.map(Server.start, found))
                self._save_identity()
                self._make_database()
                self.make_buckets(buckets)
            except BaseException:
                for server in found:
                    with contextlib.suppress(LocalStackError):
                        server.stop()
                self._dismiss_guard()
                raise
            _write_private(
                self.env_file,
                "".join(
                    f"{name}={shlex.quote(value)}\n"  # for shells, and for the settings' reader
                    for name, value in (self.environment() | dict(settings or {})).items()
                ),
            )
            _write_private(
                self.password_file,
                f"{LOOPBACK}:{self.postgres.port}:*:{MODERATOR}:"
                f"{self._derived_password(MODERATOR)}\n",
            )

    def start_commands(self, settings: Settings, *commands: CommandServer) -> None:
        """Start some of `commands` over a running stack, with settings from `pointed_here`.

        Raises `LocalStackError`.
        """
        with locked(self.folder):
            self._settings = settings
            for command in commands:
                command.start()
            self._save_identity()

    def check(self) -> bool:
        """Say whether servers and commands run; not when somebody stopped them, as `down` does.

        Raises `ServerEnded` for one that ended by itself.
        """
        everything = (*self.commands, *self.servers)
        if all(server.running for server in everything):
            return True
        if self.exists:
            with locked(self.folder):  # whoever stops them holds it until all pidfiles are gone
                for server in everything:
                    if server.pidfile.exists():
                        server.check()
        return False

    def pointed_here(
        self, settings: Settings, *, buckets: Sequence[str], evidence: str | None
    ) -> Settings:
        """Return the settings with this stack's addresses and buckets in place of theirs.

        `evidence` names one of the buckets, or None where no evidence is kept.
        """
        return settings.model_copy(
            update={
                "postgres": settings.postgres.model_copy(
                    update={
                        "url": SecretStr(self.database_url()),
                        "owner_url": SecretStr(self.owner_url()),
                    }
                ),
                "redis": settings.redis.model_copy(update={"url": SecretStr(self.redis.url)}),
                "s3": settings.s3.model_copy(
                    update={
                        "endpoint_url": self.s3.endpoint_url,
                        "region": self.s3.region,
                        "access_key_id": SecretStr(self.s3.access_key_id),
                        "secret_access_key": SecretStr(self.s3.secret_access_key),
                        "buckets": tuple(buckets),
                    }
                ),
                "moderation": settings.moderation.model_copy(update={"evidence_bucket": evidence}),
            }
        )

    def moderator_password(self) -> str:
        """Return the password of the moderator's login."""
        return self._derived_password(MODERATOR)

    def stop(self) -> None:
        """Stop what runs, cleanly; raise `LocalStackError` when a server would not or failed."""
        problems = []
        if not self.exists:
            return
        with locked(self.folder):
            for server in (*self.commands, *self.servers):
                try:
                    server.stop()
                except LocalStackError as error:
                    problems.append(str(error))
            self._dismiss_guard()  # which deletes a temporary stack
        if problems:
            raise LocalStackError("; ".join(problems))

    def delete(self) -> list[str]:
        """Remove a stopped stack's data, secrets and logs; return the names of what is not ours.

        The folder goes when nothing is left. Raises `LocalStackError`, and removes nothing, where
        no stack was started.
        """
        if self.exists:
            self.postgres.delete()
        return remove(self.folder, self._names)

    def clone_database(self, template: str, name: str) -> None:
        """Copy a database that nobody is connected to, file by file, with its rights and limits."""
        with self._superuser() as cursor:
            cursor.execute(
                f'CREATE DATABASE "{name}" OWNER {OWNER} TEMPLATE "{template}" STRATEGY FILE_COPY'
            )
        # Who may connect, and what is set for a database, stay behind with the one copied.
        with self._superuser(name) as cursor:
            cursor.execute(_bootstrap_sql())

    def drop_database(self, name: str) -> None:
        """Drop a database and whoever is connected to it."""
        with self._superuser() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def make_buckets(self, buckets: Sequence[str]) -> None:
        """Create the buckets that do not exist yet."""
        client = self.s3.client()
        existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in set(buckets) - existing:
            client.create_bucket(Bucket=bucket)
        client.close()

    def _settings_given(self) -> Settings:
        if self._settings is None:
            raise LocalStackError("no settings were given to the processes of the service")
        return self._settings

    @property
    def _names(self) -> tuple[str, ...]:
        """What a stack makes in its folder, but for the marker."""
        files = (self._identity_file, self.env_file, self.password_file)
        ours = [name for file in files for name in (file.name, _partial(file).name)]
        servers = (*self.commands, *self.servers)
        return (*ours, RUN, *(name for server in servers for name in server.names))

    @property
    def _identity_file(self) -> Path:
        return self.folder / "stack.json"

    def _load_identity(self) -> Identity:
        if not (self.exists and self._identity_file.exists()):
            return Identity()
        try:
            return Identity(**json.loads(self._identity_file.read_text()))
        except (ValueError, TypeError) as error:
            message = f"{self._identity_file} is damaged; remove {self.folder} to start anew"
            raise LocalStackError(message) from error

    def _agree(self) -> None:
        """Keep this stack's secrets, unless somebody else has started one here meanwhile."""
        if not self._identity_file.exists():
            self._save_identity()
        elif replace(self._load_identity(), ports={}) != replace(self._identity, ports={}):
            raise LocalStackError(f"another process has made a stack in {self.folder}: try again")

    def _save_identity(self) -> None:
        servers = (self.console, self.serve, *self.servers)
        self._identity.ports.update({server.name: server.port for server in servers})
        _write_private(self._identity_file, json.dumps(asdict(self._identity)))

    def _start_guard(self) -> subprocess.Popen[bytes]:
        doomed = {self.folder, self.postgres.home} if self.temporary_folder else set()
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.guard", str(self.folder), *map(str, doomed)],
            stdin=subprocess.PIPE,
            cwd=root,
            start_new_session=True,
        )

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.communicate()

    @contextlib.contextmanager
    def _superuser(self, database: str = "postgres") -> Iterator[psycopg.Cursor]:
        import psycopg

        with psycopg.connect(self.postgres.dsn(database), autocommit=True) as connection:
            yield connection.cursor()

    def _make_database(self) -> None:
        with self._superuser() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
        with self._superuser(DATABASE) as cursor:
            cursor.execute(_bootstrap_sql())
            cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (MODERATOR,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE ROLE {MODERATOR} IN ROLE moderator")
            for role, password in (
                (MODERATOR, self._derived_password(MODERATOR)),
                (OPERATOR, self._derived_password(OPERATOR)),
                (OWNER, self._identity.owner_password),
                (APP, self._identity.app_password),
            ):
                cursor.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{password}'")
            cursor.execute(f"ALTER DATABASE {DATABASE} OWNER TO {OWNER}")


def _bootstrap_sql() -> str:
    return importlib.resources.files("worker").joinpath("bootstrap.sql").read_text()


def _write_private(path: Path, text: str) -> None:
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
