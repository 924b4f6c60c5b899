"""Commits events to the ledger and publishes what has no message yet, one bad event aside.

What the ledger refuses is halved until single events are left: a bad one costs its neighbours some
transactions and no more. Doing events again changes nothing, so halves may repeat what was done.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from redis.exceptions import RedisError

from detection.errors import PermanentError, TransientError
from worker.database.engine import SchemaOutdated, blames_values
from worker.ledger.interface import Removal, Upload
from worker.telemetry.tracer import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.ingest.bridge_metrics import BridgeMetrics
    from worker.ledger.interface import Ledger, Registration
    from worker.queue.publisher import Publisher
    from worker.telemetry.tracer import Tracer


class EventNotStored(PermanentError):
    """The ledger does not take this event, while it takes others."""

    reason: ClassVar[str] = "not_stored"


class Registrar:
    """Every method raises `TransientError` or `RedisError` when a service is away."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        publisher: Publisher,
        metrics: BridgeMetrics,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._metrics = metrics
        self._tracer = tracer

    def keep(
        self, events: Sequence[Upload | Removal], *, publish: bool, read_at: float
    ) -> list[tuple[Upload | Removal, EventNotStored]]:
        """Commit events in their order; return those that the ledger does not take, and why.

        `read_at` is when they were read, by the monotonic clock. What fails for every event of
        several and is not about their values is no fault of theirs: it is raised as it is.
        """
        failed = self._keep(events, publish=publish, read_at=read_at)
        if len(failed) == len(events):
            for _, error in failed:
                if not blames_values(error):
                    raise error
        return [(event, _not_stored(error)) for event, error in failed]

    def _keep(
        self, events: Sequence[Upload | Removal], *, publish: bool, read_at: float
    ) -> list[tuple[Upload | Removal, Exception]]:
        try:
            self._commit(events, publish=publish, read_at=read_at)
        except (TransientError, RedisError, SchemaOutdated):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it may be of one event only
            if len(events) == 1:
                return [(events[0], error)]
            middle = len(events) // 2
            return [
                failed
                for half in (events[:middle], events[middle:])
                for failed in self._keep(half, publish=publish, read_at=read_at)
            ]
        return []

    def _commit(self, events: Sequence[Upload | Removal], *, publish: bool, read_at: float) -> None:
        unpublished: list[Registration] = []
        for kind, group in groupby(events, key=type):
            if kind is Upload:
                uploads = [event for event in group if isinstance(event, Upload)]
                asked_at = time.monotonic()
                answers = self._ledger.register(uploads)
                created = sum(answer.created for answer in answers)
                self._metrics.registered.inc(created)
                self._metrics.duplicates.inc(len(answers) - created)
                unpublished += [
                    self._traced(upload, answer, read_at=read_at, asked_at=asked_at)
                    for upload, answer in zip(uploads, answers, strict=True)
                    if answer.unpublished
                ]
            else:
                removals = [event for event in group if isinstance(event, Removal)]
                self._metrics.withdrawn.inc(self._ledger.withdraw(removals))
        once = list({answer.image_id: answer for answer in unpublished}.values())
        if publish and once:
            self._metrics.published.inc(self._publisher.publish(once))

    def _traced(
        self, upload: Upload, answer: Registration, *, read_at: float, asked_at: float
    ) -> Registration:
        """Begin the trace of an image that gets its first message, or go on with its producer's."""
        now = time.monotonic()
        entry = self._tracer.record(
            "ingest",
            begun_s=read_at,
            ended_s=now,
            parent=upload.traceparent,
            image_id=str(answer.image_id),
        )
        self._tracer.record("register", begun_s=asked_at, ended_s=now, parent=entry)
        return replace(answer, traceparent=entry)


def _not_stored(error: Exception) -> EventNotStored:
    # The driver's own words: those around them repeat every value of the statement.
    cause = getattr(error, "orig", None) or error
    failure = EventNotStored(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}")
    failure.__cause__ = error
    return failure
