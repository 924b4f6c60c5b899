"""Pauses and resumes what a running Celery worker takes from its queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery.apps.worker import Worker
    from celery.worker.consumer import Consumer

_log = structlog.get_logger(__name__)


class ConsumerControl:
    """Pauses the queues of images; `bind` names the worker once it exists."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues
        self._worker: Worker | None = None

    def bind(self, worker: Worker) -> None:
        """Name the worker to pause."""
        self._worker = worker

    def pause(self) -> None:
        """Take no more messages; safe to call from any thread."""
        self._on_the_loop("cancel_task_queue")

    def resume(self) -> None:
        """Take messages again."""
        self._on_the_loop("add_task_queue")

    def _on_the_loop(self, method: str) -> None:
        consumer: Consumer | None = None if self._worker is None else self._worker.consumer
        if consumer is None:
            return
        # Only the thread that runs the worker's event loop may touch its channel.
        consumer.call_soon(_apply, consumer, method, self._queues)


def _apply(consumer: Consumer, method: str, queues: Sequence[str]) -> None:
    for queue in queues:
        try:
            getattr(consumer, method)(queue)
        except consumer.connection_errors as error:
            # The choice of queues was noted before the channel failed; reconnecting honours it.
            _log.warning("consumption_change_deferred", error=type(error).__name__)
    _log.info("consumption_changed", change=method, queues=list(queues))
