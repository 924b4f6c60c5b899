"""The whole service on this machine, with the same commands as in production.

Servers and processes end with the process that started them, even after `kill -9`: the stack's
guard finds all of them by their pidfiles.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import SecretStr

from detection.errors import UnlatentError
from worker.database.engine import connect, migrate
from worker.localstack import LocalStack
from worker.localstack.processes import LocalStackError, Server, wait_until
from worker.localstack.stack import MODERATOR
from worker.moderation.moderators import allow
from worker.settings import S3, Redis, Settings, child_environment
from worker.telemetry.health import READY

if TYPE_CHECKING:
    from types import TracebackType

BUCKET = "uploads"
EVIDENCE = "evidence"
READY_TIMEOUT_S = 180.0


class DemoError(UnlatentError):
    """The demo could not go on."""


class CommandServer(Server):
    """`python -m worker …` as a process of its own, in the caller's working directory."""

    arguments: ClassVar[tuple[str, ...]]

    def __init__(self, pidfiles: Path, logs: Path, settings: Settings) -> None:
        super().__init__(pidfiles)
        self._logs = logs
        self._settings = settings

    @property
    def log(self) -> Path:
        """Where the output goes: it outlives the stack's folder."""
        return self._logs / f"{self.arguments[0]}.log"

    def command(self) -> list[str]:
        """Return the argument vector."""
        return [sys.executable, "-m", "worker", *self.arguments]

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the demo's settings."""
        return child_environment(self._settings)

    def working_directory(self) -> Path:
        """Return the caller's: relative paths in the settings mean what they say."""
        return Path.cwd()

    def ready(self) -> bool:
        """Say yes at once: what takes long is waited for elsewhere."""
        return True


class BeatServer(CommandServer):
    """The clock."""

    name = "app-beat"
    arguments = ("beat",)


class BridgeServer(CommandServer):
    """From the ingest list to the ledger."""

    name = "app-bridge"
    arguments = ("bridge",)


class WorkerServer(CommandServer):
    """The one that scores."""

    name = "app-worker"
    arguments = ("worker",)


class TrainerServer(CommandServer):
    """The one that retrains; it is ready when it is ready, and not when the worker is."""

    name = "app-trainer"
    arguments = ("trainer",)

    def environment(self) -> dict[str, str]:
        """Return the demo's settings with a folder of its own for what it says of itself."""
        seen = self._settings.observability
        own = seen.model_copy(update={"run_dir": seen.run_dir / "trainer"})
        return child_environment(self._settings.model_copy(update={"observability": own}))


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
        self._buckets = (BUCKET, EVIDENCE) if evidence else (BUCKET,)
        self._logs = logs
        self._exits = ExitStack()
        self.settings = settings
        self._commands: tuple[CommandServer, ...] = ()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self.stack.start(buckets=(*self._buckets, self.settings.training.bucket))
            exits.callback(self.stack.stop)
            migrate(self.stack.owner_url())
            self.settings = self._pointed_here(self.settings)
            self._logs.mkdir(parents=True, exist_ok=True)
            self._commands = tuple(
                kind(self.stack.folder, self._logs, self.settings) for kind in self._kinds
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
        """Wait until the worker takes messages; raises `DemoError` naming the log otherwise."""
        ready = self.settings.observability.run_dir / READY

        def there() -> bool:
            self.check()
            return ready.exists()

        if not wait_until(there, timeout_s=READY_TIMEOUT_S):
            message = f"the worker was not ready within {READY_TIMEOUT_S:g} s"
            raise DemoError(f"{message}; its log is {self._logs / 'worker.log'}")

    def check(self) -> None:
        """Raise `DemoError` naming the log of a process that is gone."""
        for command in self._commands:
            if not command.running:
                raise DemoError(f"{command.name} ended by itself; its log is {command.log}")

    def start_console(self) -> tuple[str, str, str]:
        """Start the moderators' console; return its address, and a lead's name and password."""
        engine = connect(self.stack.database_url(), application_name="unlatent-demo")
        try:
            allow(engine, MODERATOR, sources=None, lead=True)
        finally:
            engine.dispose()
        self.stack.start_console(buckets=self._buckets)
        return self.stack.console.address, MODERATOR, self.stack.moderator_password()

    def _pointed_here(self, settings: Settings) -> Settings:
        stack = self.stack
        return settings.model_copy(
            update={
                "postgres": settings.postgres.model_copy(
                    update={
                        "url": SecretStr(stack.database_url()),
                        "owner_url": SecretStr(stack.owner_url()),
                    }
                ),
                "redis": Redis(url=SecretStr(stack.redis.url)),
                "s3": S3(
                    endpoint_url=stack.s3.endpoint_url,
                    region=stack.s3.region,
                    access_key_id=SecretStr(stack.s3.access_key_id),
                    secret_access_key=SecretStr(stack.s3.secret_access_key),
                    buckets=self._buckets,
                ),
                "moderation": settings.moderation.model_copy(
                    update={"evidence_bucket": EVIDENCE if EVIDENCE in self._buckets else None}
                ),
                "observability": settings.observability.model_copy(
                    # One port could not serve three processes.
                    update={"metrics_port": 0, "run_dir": stack.folder / "run"}
                ),
            }
        )
