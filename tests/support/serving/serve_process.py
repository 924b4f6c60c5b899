"""`unlatent serve` as a process under test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import urllib3

from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.localstack.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.settings import Settings


class ServeProcess(WorkerProcess):
    """A service on a port of its own, without keys; settings of `http` may be given."""

    def __init__(
        self,
        settings: Settings,
        *,
        module: str = "tests.support.processes.sleeping_serve",
        arguments: Sequence[str] = (),
        **http: Any,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        changed = settings.http.model_copy(update={"port": port} | http)
        super().__init__(
            settings.model_copy(update={"http": changed}), module=module, arguments=arguments
        )

    @property
    def ready(self) -> bool:
        """Whether the service answers."""
        if self.process.poll() is not None:
            message = f"It exited with {self.process.returncode}:\n{self.log.read_text()}"
            raise AssertionError(message)
        try:
            return urllib3.request("GET", f"{self.url}/readyz", retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def wait_until_ready(self) -> ServeProcess:  # type: ignore[override]
        """Wait until the service answers."""
        eventually(lambda: self.ready, timeout_s=120, what="a service that answers")
        return self
