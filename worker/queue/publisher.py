"""The one place that sends Celery messages: ids only, after the ledger's commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from detection.errors import TransientError
from worker.queue import names as queues
from worker.telemetry.tracer import NO_TRACER
from worker.telemetry.tracing import message_headers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from celery import Celery

    from worker.ledger.interface import Ledger, Registration
    from worker.telemetry.tracer import Tracer


class QueueUnavailable(TransientError):
    """The broker did not take a message; the sweeper sends it later."""


class Publisher(Protocol):
    """Raises `QueueUnavailable`; what was sent before that is stamped all the same."""

    def publish(self, registrations: Sequence[Registration]) -> int:
        """Send one message an image and stamp the rows; return how many were sent."""

    def publish_rescore(self, registrations: Sequence[Registration]) -> int:
        """Send one message an image to the backfill; return how many were sent."""


class CeleryPublisher:
    """Publishes by task name, so that it needs none of the worker's code."""

    def __init__(self, app: Celery, ledger: Ledger, tracer: Tracer = NO_TRACER) -> None:
        self._app = app
        self._ledger = ledger
        self._tracer = tracer

    def publish(self, registrations: Sequence[Registration]) -> int:
        """Send checks, priority uploads to their own queue, and stamp what was sent."""
        sent: list[UUID] = []
        try:
            for registration in registrations:
                queue = queues.SCORE_PRIORITY if registration.priority else queues.SCORE
                self._send(queues.SCORE_TASK, registration, queue)
                sent.append(registration.image_id)
        finally:
            if sent:
                self._ledger.mark_published(sent)
        return len(sent)

    def publish_rescore(self, registrations: Sequence[Registration]) -> int:
        """Send rescoring; nothing is stamped, because the rows are already scored."""
        for registration in registrations:
            self._send(queues.RESCORE_TASK, registration, queues.BACKFILL)
        return len(registrations)

    def _send(self, task: str, registration: Registration, queue: str) -> None:
        image_id = str(registration.image_id)
        parent = registration.traceparent
        try:
            with self._tracer.span("publish", parent=parent, image_id=image_id):
                headers = message_headers(self._tracer)
                self._app.send_task(task, args=[image_id], queue=queue, headers=headers)
        except (OperationalError, RedisError, OSError) as error:
            raise QueueUnavailable(f"no message for image {image_id}: {error}") from error


class MemoryPublisher:
    """Remembers what it would have sent, for tests; `failing` makes the broker unavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.sent: list[UUID] = []
        self.rescored: list[UUID] = []
        self.failing = False

    def publish(self, registrations: Sequence[Registration]) -> int:
        """Remember checks and stamp the rows."""
        if self.failing:
            raise QueueUnavailable
        self.sent.extend(registration.image_id for registration in registrations)
        self._ledger.mark_published([registration.image_id for registration in registrations])
        return len(registrations)

    def publish_rescore(self, registrations: Sequence[Registration]) -> int:
        """Remember rescoring."""
        if self.failing:
            raise QueueUnavailable
        self.rescored.extend(registration.image_id for registration in registrations)
        return len(registrations)
