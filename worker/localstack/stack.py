"""The local stack: three servers, and the service's processes over them, from start to end."""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from worker.localstack.addresses import StackAddresses
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
from worker.localstack.database import LocalDatabase
from worker.localstack.folder import claim, claim_more, is_stack, locked, remove
from worker.localstack.guard_process import GuardProcess
from worker.localstack.identity import Identity, IdentityFile, partial_of
from worker.localstack.processes import LocalStackError, Server
from worker.localstack.servers import PostgresServer, S3Server, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from worker.localstack.commands import CommandServer
    from worker.settings import Settings


class LocalStack:
    """PostgreSQL, Valkey and S3 in one folder.

    A stack is *detached* (`unlatent up`: it outlives the process that started it, and a later one
    finds it by its folder) or *owned* (its servers end with this process, even after `kill -9`).
    `temporary` makes an owned stack whose folder is deleted at the end.

    `postgres`, `redis` and `s3` can each be stopped, killed and started by themselves. `addresses`
    point others at them, and `database` makes, copies and drops databases.
    """

    def __init__(self, folder: Path, *, owned: bool = False, durable: bool = True) -> None:
        self.folder = folder.absolute()
        self.owned = owned
        self.temporary_folder = False
        self._identity_file = IdentityFile(self.folder / "stack.json")
        kept = self.exists and self._identity_file.path.exists()
        self._identity = self._identity_file.load() if kept else Identity()
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
        self.addresses = StackAddresses(
            folder=self.folder,
            identity=self._identity,
            postgres=self.postgres,
            redis=self.redis,
            s3=self.s3,
        )
        self.database = LocalDatabase(self.postgres, self._identity)
        self._settings: Settings | None = None
        self._guard = GuardProcess()

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

    def start(
        self, *, buckets: Sequence[str] = ("uploads",), settings: Mapping[str, str] | None = None
    ) -> None:
        """Start what does not run yet; afterwards roles, the database and the buckets exist.

        `settings` are added to the file of addresses. Raises `LocalStackError`; what this call had
        started is stopped again.
        """
        claim(self.folder, self._names)
        with locked(self.folder):
            claim_more(self.folder, self._names)
            self._agree()
            if self.owned and not self._guard.on_duty:
                if any(server.running for server in self.servers):
                    raise LocalStackError(f"another process runs a local stack in {self.folder}")
                doomed = {self.folder, self.postgres.home} if self.temporary_folder else set()
                self._guard.start(self.folder, doomed)
            found = [server for server in self.servers if not server.running]
            try:
                with ThreadPoolExecutor(len(self.servers)) as pool:
                    list(pool.map(Server.start, found))
                self._save_identity()
                self.database.make()
                self.s3.make_buckets(buckets)
            except BaseException:
                for server in found:
                    with contextlib.suppress(LocalStackError):
                        server.stop()
                self._guard.dismiss()
                raise
            self.addresses.write(settings or {})

    def start_commands(self, settings: Settings, *commands: CommandServer) -> None:
        """Start some of `commands` over a running stack.

        `settings` are those that `addresses.pointed_here` returns. Raises `LocalStackError`.
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
            self._guard.dismiss()  # which deletes a temporary stack
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

    def _settings_given(self) -> Settings:
        if self._settings is None:
            raise LocalStackError("no settings were given to the processes of the service")
        return self._settings

    @property
    def _names(self) -> tuple[str, ...]:
        """What a stack makes in its folder, but for the marker."""
        files = (self._identity_file.path, *self.addresses.files)
        ours = [name for file in files for name in (file.name, partial_of(file).name)]
        servers = (*self.commands, *self.servers)
        return (*ours, RUN, *(name for server in servers for name in server.names))

    def _agree(self) -> None:
        """Keep this stack's secrets, unless another process has made a stack here meanwhile."""
        if self._identity_file.path.exists():
            self._identity_file.compare(self._identity)
        else:
            self._save_identity()

    def _save_identity(self) -> None:
        servers = (self.console, self.serve, *self.servers)
        self._identity.ports.update({server.name: server.port for server in servers})
        self._identity_file.save(self._identity)
