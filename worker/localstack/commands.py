"""The moderators' console as one more process of the local stack."""

from __future__ import annotations

import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from worker.localstack.processes import LOOPBACK, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

#: Where people look for it; another port is taken while this one is not free.
PORT = 8600


class ConsoleServer(Server):
    """`unlatent console` with the settings that it is given as it starts, and no others."""

    name = "console"

    def __init__(
        self, folder: Path, *, settings: Callable[[], Mapping[str, str]], port: int | None = None
    ) -> None:
        super().__init__(folder, port=port or PORT)
        self._settings = settings

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{LOOPBACK}:{self.port}/"

    def command(self) -> list[str]:
        """Return the arguments."""
        return [sys.executable, "-m", "worker", "console"]

    def environment(self) -> dict[str, str]:
        """Return the settings; nothing of ours is inherited but where Python finds modules."""
        return {
            **super().environment(),
            **self._settings(),
            "PYTHONPATH": ":".join(sys.path),
            "UNLATENT_CONSOLE__PORT": str(self.port),
        }

    def ready(self) -> bool:
        """Whether it answers."""
        probe = HTTPConnection(LOOPBACK, self.port, timeout=1.0)
        try:
            probe.request("GET", "/healthz")
            return probe.getresponse().status == 200
        except OSError:
            return False
        finally:
            probe.close()
