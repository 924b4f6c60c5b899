"""Processes of `unlatent` over a local stack: worker, bridge, beat, serve, console, trainer."""

from __future__ import annotations

import os
import signal
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from worker.localstack.processes import LOOPBACK, Server
from worker.settings import child_environment
from worker.telemetry.health import BEAT_ALIVE, BRIDGE_ALIVE, READY

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.settings import Settings

#: Where people look for them; another port is taken while this one is not free.
CONSOLE_PORT, SERVE_PORT = 8600, 8700
#: The folder, in a stack's, of what processes say of themselves.
RUN = "run"

_OF_SIGTERM = (128 + signal.SIGTERM, -signal.SIGTERM)


class CommandServer(Server):
    """`unlatent NAME`, with the settings that are in force as it starts.

    It runs in the caller's working directory, so that relative paths in the settings mean what they
    say. Its log lies in `logs`, where that is given, else beside its pidfile.
    """

    start_timeout_s = 120.0  # Python and its packages take long on a busy machine
    stop_timeout_s = 60.0  # what is under way ends first
    #: The file in `run_folder` with which the process says that it is up; None when it has none.
    sign: ClassVar[str | None] = None

    def __init__(
        self,
        folder: Path,
        *,
        settings: Callable[[], Settings],
        logs: Path | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(folder, port=port)
        self._settings = settings
        self._logs = logs or folder

    @property
    def log(self) -> Path:
        """Where the output goes."""
        return self._logs / f"{self.name}.log"

    @property
    def run_folder(self) -> Path:
        """Where the process says that it is alive and ready; each has its own."""
        return self.folder / RUN / self.name

    @property
    def clean_codes(self) -> tuple[int, ...]:
        """The exit codes of a process that ends well: before it is up it ends of the signal."""
        return (0,) if self.up else (0, *_OF_SIGTERM)

    @property
    def up(self) -> bool:
        """Whether the process has said that it is up; a worker then takes uploads."""
        return self.sign is not None and (self.run_folder / self.sign).exists()

    def prepare(self) -> None:
        """Remove the sign of a process that was killed: it would speak for the next one."""
        if self.sign is not None:
            (self.run_folder / self.sign).unlink(missing_ok=True)

    def command(self) -> list[str]:
        """Return the argument vector."""
        # -P: a worker.py or redis.py in the caller's directory is not ours.
        return [sys.executable, "-P", "-m", "worker", self.name]

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the settings, but for logins of people."""
        given = self._settings()
        no_people = dict.fromkeys(("owner_url", "moderator_url", "operator_url"))
        own = given.model_copy(
            update={
                "postgres": given.postgres.model_copy(update=no_people),
                # One port could not serve several processes.
                "observability": given.observability.model_copy(
                    update={"metrics_port": 0, "run_dir": self.run_folder}
                ),
            }
        )
        return child_environment(own) | {"PYTHONPATH": _module_path()}

    def working_directory(self) -> Path:
        """Return the caller's."""
        return Path.cwd()

    def ready(self) -> bool:
        """Say yes at once: what takes long is waited for elsewhere."""
        return True


class WorkerServer(CommandServer):
    """The one that scores."""

    name = "worker"
    sign = READY


class BridgeServer(CommandServer):
    """From the ingest list to the ledger."""

    name = "bridge"
    sign = BRIDGE_ALIVE


class BeatServer(CommandServer):
    """The clock."""

    name = "beat"
    sign = BEAT_ALIVE


class TrainerServer(CommandServer):
    """The one that retrains."""

    name = "trainer"
    sign = READY


class WebServer(CommandServer):
    """One that answers HTTP. It has no sign: it ends of the signal also once it is up."""

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{LOOPBACK}:{self.port}/"

    @property
    def answers(self) -> bool:
        """Whether it answers."""
        probe = HTTPConnection(LOOPBACK, self.port, timeout=1.0)
        try:
            probe.request("GET", "/healthz")
            return probe.getresponse().status == 200
        except OSError:
            return False
        finally:
            probe.close()


class ServeServer(WebServer):
    """Checks and uploads over HTTP."""

    name = "serve"

    def environment(self) -> dict[str, str]:
        """Return the settings, this machine's address and the way into the ledger among them."""
        return super().environment() | {
            "UNLATENT_HTTP__HOST": LOOPBACK,
            "UNLATENT_HTTP__PORT": str(self.port),
            "UNLATENT_HTTP__LEDGER": "true",
        }


class ConsoleServer(WebServer):
    """The moderators' pages; it gets addresses and storage, and no other setting."""

    name = "console"

    def environment(self) -> dict[str, str]:
        """Return what it needs: moderators bring logins of their own to the database.

        Nothing of ours is inherited but where Python finds modules.
        """
        settings = self._settings()
        database = urlsplit(settings.postgres.url.get_secret_value())
        nobody = database._replace(netloc=database.netloc.rpartition("@")[2]).geturl()
        storage = {
            name: value for name, value in child_environment(settings).items() if "_S3__" in name
        }
        return {
            **Server.environment(self),
            **storage,
            "PYTHONPATH": _module_path(),
            "UNLATENT_POSTGRES__URL": nobody,
            "UNLATENT_CONSOLE__PORT": str(self.port),
        }

    def ready(self) -> bool:
        """Whether it answers."""
        return self.answers


def _module_path() -> str:
    """Return where this process finds modules, so that its children find the same ones."""
    return os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
