"""SIGTERM ends every long-running command, as Kubernetes asks it to."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.settings import Webhooks

if TYPE_CHECKING:
    from worker.settings import Settings


def test_a_command_without_a_gentler_end_still_ends(settings: Settings) -> None:
    """Process 1 has no default for SIGTERM, so the command line installs one: exit code 143."""
    settings = settings.model_copy(
        update={"webhooks": Webhooks(url="http://127.0.0.1:9/", secret=SecretStr("s" * 32))}
    )
    with WorkerProcess(settings, module="worker", arguments=["webhooks", "run"]) as process:
        eventually(lambda: "sending" in process.log.read_text(), what="the first look")
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        assert int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1
        assert process.stop() == 128 + signal.SIGTERM
