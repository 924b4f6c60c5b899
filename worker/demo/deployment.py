"""The whole service on this machine, with the same commands as in production.

Servers and processes end with the process that started them, even after `kill -9`: the stack's
guard finds all of them by their pidfiles.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Self

from detection.errors import UnlatentError
from worker.database.engine import connect, migrate
from worker.localstack import LocalStack
from worker.localstack.commands import BeatServer, BridgeServer, CommandServer, WorkerServer
from worker.localstack.identity import MODERATOR
from worker.localstack.processes import LocalStackError, wait_until
from worker.moderation.moderators import allow

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from worker.settings import Settings

BUCKET = "uploads"
EVIDENCE = "evidence"
READY_TIMEOUT_S = 180.0


class DemoError(UnlatentError):
    """The demo could not go on."""


SERVICE: tuple[type[CommandServer], ...] = (WorkerServer, BridgeServer, BeatServer)


class Deployment:
    """PostgreSQL, Redis and S3 in a folder that goes, and the service's processes over them.

    `settings` are the caller's with the addresses replaced; logs are left in `logs`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        logs: Path,
        kinds: tuple[type[CommandServer], ...] = SERVICE,
        evidence: bool = False,
    ) -> None:
        self.stack = LocalStack.temporary()
        self._kinds = kinds
        self._evidence = EVIDENCE if evidence else None
        self._buckets = (BUCKET, EVIDENCE) if evidence else (BUCKET,)
        self._logs = logs
        self._exits = ExitStack()
        self.settings = settings
        self._commands: tuple[CommandServer, ...] = ()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self.stack.start(buckets=(*self._buckets, self.settings.training.bucket))
            exits.callback(self.stack.stop)
            migrate(self.stack.addresses.owner_url())
            self.settings = self.stack.addresses.pointed_here(
                self.settings, buckets=self._buckets, evidence=self._evidence
            )
            self._logs.mkdir(parents=True, exist_ok=True)
            self._commands = tuple(
                kind(self.stack.folder, settings=lambda: self.settings, logs=self._logs)
                for kind in self._kinds
            )
            for command in self._commands:
                command.log.unlink(missing_ok=True)
                command.start()
                exits.callback(command.stop)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop everything; raises `LocalStackError` for a process that did not end well."""
        # What already went wrong says more than how a process took being stopped for it.
        with suppress(LocalStackError) if error is not None else nullcontext():
            self._exits.close()

    def wait_until_ready(self) -> None:
        """Wait until the worker takes messages; raises an error naming the log otherwise."""
        worker = next(one for one in self._commands if isinstance(one, WorkerServer))

        def there() -> bool:
            self.check()
            return worker.up

        if not wait_until(there, timeout_s=READY_TIMEOUT_S):
            message = f"the worker was not ready within {READY_TIMEOUT_S:g} s"
            raise DemoError(f"{message}; its log is {worker.log}")

    def check(self) -> None:
        """Raise `ServerEnded` naming the log of a process that is gone."""
        for command in self._commands:
            command.check()

    def start_console(self) -> tuple[str, str, str]:
        """Start the moderators' console; return its address, and a lead's name and password."""
        engine = connect(self.stack.addresses.database_url(), application_name="unlatent-demo")
        try:
            allow(engine, MODERATOR, sources=None, lead=True)
        finally:
            engine.dispose()
        self.stack.start_commands(self.settings, self.stack.console)
        return self.stack.console.address, MODERATOR, self.stack.addresses.moderator_password()
