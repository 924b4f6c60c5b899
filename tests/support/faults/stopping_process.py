"""A worker or a bridge that stops dead at a named point.

The process sends itself SIGSTOP there, so that a test can look at it, and kill it, at exactly that
point. What runs is the code of the service; only the methods at which it stops are wrapped.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Phase → the class and the method around which the process stops, and on which side.
WORKER_PHASES = {
    "popped": ("worker.queue.redis_qos:LeakFreeQoS", "append", "before"),
    "leased": ("worker.ledger.postgres:PostgresLedger", "lease", "after"),
    "fetching": ("worker.storage.s3:S3Storage", "fetch", "before"),
    "decoding": ("worker.decoding.pool:_Process", "ask", "before"),
    "waiting": ("worker.scoring.device_thread:InferenceThread", "submit", "after"),
    "forward": ("worker.scoring.device.forward_pass:ForwardPass", "_forward", "before"),
    "committing": ("worker.ledger.postgres:PostgresLedger", "record", "before"),
    "acknowledging": ("worker.ledger.postgres:PostgresLedger", "record", "after"),
}
BRIDGE_PHASES = {
    "taking": ("worker.ingest.bridge:Bridge", "_take", "before"),
    "taken": ("worker.ingest.bridge:Bridge", "_take", "after"),
    "registered": ("worker.ledger.postgres:PostgresLedger", "register", "after"),
    "sent": ("worker.ledger.postgres:PostgresLedger", "mark_published", "before"),
    "published": ("worker.queue.publisher:CeleryPublisher", "publish", "after"),
    "removed": ("worker.ingest.bridge:Bridge", "_register_entries", "after"),
}
SQS_PHASES = {
    "taking_in": ("worker.ingest.bridge:Bridge", "take_in", "before"),
    "taken_in": ("worker.ingest.bridge:Bridge", "take_in", "after"),
    "deleted": ("worker.ingest.sqs_bridge:SqsBridge", "_delete", "after"),
}


def stop_at(place: str, name: str, side: str) -> None:
    """Make the first call of the method stop this process, before or after its work."""
    import importlib

    module, _, owner = place.partition(":")
    holder = getattr(importlib.import_module(module), owner)
    method: Callable[..., Any] = getattr(holder, name)

    first = iter([True])

    @functools.wraps(method)
    def stopping(*arguments: Any, **named: Any) -> Any:
        if side == "before" and next(first, False):
            _stop()
        answer = method(*arguments, **named)
        if side == "after" and next(first, False):
            _stop()
        return answer

    setattr(holder, name, stopping)


def _stop() -> None:
    # Sent to this very thread, it takes effect before the call returns, for the whole process.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def slow_down(forward_s: float) -> None:
    """Make every forward pass of uploaded images take so much longer."""
    from worker.scoring.device.forward_pass import ForwardPass

    quick = ForwardPass._forward

    @functools.wraps(quick)
    def slow(*arguments: Any) -> Any:
        time.sleep(forward_s)
        return quick(*arguments)

    ForwardPass._forward = slow  # type: ignore[method-assign]  # the device is this slow


def main() -> int:
    """Run a worker with the in-memory scorer, or a bridge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["worker", "bridge"])
    parser.add_argument("--stop-at", choices=[*WORKER_PHASES, *BRIDGE_PHASES, *SQS_PHASES])
    parser.add_argument("--forward-s", type=float, default=0.0)
    parser.add_argument("--name", default=f"bridge-{os.getpid()}")
    parser.add_argument("--sqs")
    options = parser.parse_args()
    if options.forward_s:
        slow_down(options.forward_s)
    if options.stop_at:
        stop_at(*(WORKER_PHASES | BRIDGE_PHASES | SQS_PHASES)[options.stop_at])
    if options.kind == "bridge":
        from worker.cli import main as unlatent

        queue = ["--sqs", options.sqs] if options.sqs else []
        sys.argv = ["unlatent", "bridge", "--name", options.name, *queue]
        unlatent()
        return 0
    from tests.support.processes.memory_worker import main as run
    from worker.decoding.pool import DecodePool
    from worker.processes import worker

    worker.DecodePool = functools.partial(  # type: ignore[misc,assignment]  # the decoder's seam
        DecodePool, decoder="tests.support.faults.poison_decoder:decode"
    )
    sys.argv = sys.argv[:1]
    return run()


if __name__ == "__main__":
    sys.exit(main())
