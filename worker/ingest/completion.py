"""Completes events: storage is asked which key, and which version or etag of it, they mean.

They wait in a set of their own, so that storage that is slow, away or odd holds up nobody else:
what storage cannot say now is put off, ever longer, within the budget of
`worker.scoring.storage_budget`. While storage gives nothing to anybody, none is asked for.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from detection.errors import PermanentError, TransientError
from worker.backoff import backoff_s
from worker.ingest.events import own_event
from worker.ingest.key_encoding import settle
from worker.ingest.waiting import MemberUnreadable, read_member
from worker.ledger.interface import Removal, Upload
from worker.scoring.storage_breaker import StorageBreaker
from worker.scoring.storage_budget import counts, within_budget
from worker.storage.etags import stand_in_of_event
from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    StorageForbidden,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.ingest.bridge_metrics import BridgeMetrics
    from worker.ingest.registrar import Registrar
    from worker.ingest.rejected import RejectedEntries
    from worker.ingest.waiting import WaitingEvent, WaitingEvents
    from worker.settings import S3
    from worker.storage.interface import ObjectFacts, Storage

_log = structlog.get_logger(__name__)

BATCH = 256
#: So many are asked for at once.
THREADS = 16
#: For so long a batch asks; what was not asked for by then is due again at once.
ASK_S = 10.0
FIRST_DELAY_S = 5.0
LONGEST_DELAY_S = 600.0
#: How often storage that gives nothing is asked whether it does again.
PROBE_S = 10.0


class NotAsked(TransientError):
    """There was no time to ask storage."""


class Completion:
    """Works off the events that wait; `close` ends what it began."""

    def __init__(
        self,
        *,
        storage: Storage,
        settings: S3,
        waiting: WaitingEvents,
        registrar: Registrar,
        rejected: RejectedEntries,
        metrics: BridgeMetrics,
        last_read: Callable[[], Upload | None],
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._waiting = waiting
        self._registrar = registrar
        self._rejected = rejected
        self._metrics = metrics
        # What is refused here is in no ledger that could reopen it: without an object to compare
        # with, a denial is undecided for as long as the budget lasts.
        self._breaker = StorageBreaker(
            storage,
            limit=settings.denied_limit,
            tries=settings.unreadable_tries,
            pause=lambda: None,
            resume=lambda: None,
            last_read=last_read,
            probe_every_s=PROBE_S,
        )

    def close(self) -> None:
        """End the breaker's probing."""
        self._breaker.stop()

    def step(self) -> int:
        """Ask for a batch of what is due; return how many were done, put off or refused.

        Raises `TransientError` or `RedisError` when a service is away; nothing is lost by that.
        """
        self._metrics.waiting.set(self._waiting.count())
        self._metrics.paused.set(self._breaker.is_open)
        if self._breaker.is_paused:
            return 0
        read_at = time.monotonic()
        members = self._waiting.claim(BATCH)
        waiting, done = {}, []
        for member in members:
            try:
                waiting[member] = read_member(member)
            except MemberUnreadable as refusal:
                self._rejected.add(member, refusal)
                done.append(member)
        outcomes = self.complete([*waiting.values()], read_at=read_at)
        for (member, one), error in zip(waiting.items(), outcomes, strict=True):
            if error is None:
                done.append(member)
            else:
                self._put_off(member, one, error)
        self._waiting.remove(done)
        return len(members)

    def complete(
        self, waiting: Sequence[WaitingEvent], *, read_at: float
    ) -> list[Exception | None]:
        """Ask for events, commit what is complete and refuse what never will be.

        Returns for each what it must wait for, None for what is done.
        """
        if not waiting:
            return []
        now = self._waiting.now()
        deadline = time.monotonic() + ASK_S
        with ThreadPoolExecutor(min(THREADS, len(waiting))) as pool:
            answers = list(pool.map(lambda one: self._ask(one, now, deadline), waiting))
        complete = [event for found in answers if isinstance(found, list) for event in found]
        for event, failure in self._registrar.keep(complete, publish=True, read_at=read_at):
            self._rejected.add(written_event(event), failure)
        outcomes: list[Exception | None] = []
        for one, answer in zip(waiting, answers, strict=True):
            if isinstance(answer, PermanentError):
                self._rejected.add(written_event(one.event), answer)
            outcomes.append(None if isinstance(answer, (list, PermanentError)) else answer)
        return outcomes

    def _ask(
        self, waiting: WaitingEvent, now: float, deadline: float
    ) -> list[Upload | Removal] | Exception:
        """Ask what one event means; never raises."""
        if self._breaker.is_paused:
            return StorageForbidden()
        if time.monotonic() > deadline:
            return NotAsked()
        event = waiting.event
        error: Exception
        try:
            found = [self._identified(one, waiting.since) for one in settle(event, self._storage)]
        except (AccessDenied, StorageUnavailable) as trouble:
            error = self._breaker.judge(event, trouble, attempt=waiting.attempts + 1)
        except (PermanentError, TransientError) as end:
            return end
        except Exception as bug:  # noqa: BLE001 - a bug must not hold up the others
            _log.exception("completion_failed")
            error = AnswerUnusable(f"Unexpected {type(bug).__name__} in the bridge.")
        else:
            self._breaker.record_success(event)
            return found
        tried_for = timedelta(seconds=now - waiting.since)
        return within_budget(error, self._settings, tries=waiting.tries, tried_for=tried_for)

    def _identified(self, event: Upload | Removal, since: float) -> Upload | Removal:
        if isinstance(event, Removal) or event.etag or event.version_id:
            return event
        facts = self._storage.head(event.bucket, event.key)
        moment = event.uploaded_at.isoformat() if event.uploaded_at else str(since)
        return identified(event, facts, moment=moment)

    def _put_off(self, member: bytes, waiting: WaitingEvent, error: Exception) -> None:
        if isinstance(error, NotAsked):
            self._waiting.put_off(member, delay_s=0.0, counted=False, asked=False)
            return
        asked = not isinstance(error, StorageForbidden)
        delay_s = backoff_s(waiting.attempts, first_s=FIRST_DELAY_S, longest_s=LONGEST_DELAY_S)
        self._waiting.put_off(member, delay_s=delay_s, counted=counts(error), asked=asked)
        self._metrics.put_off.inc()
        _log.info(
            "upload_waits",
            bucket=waiting.event.bucket,
            key=waiting.event.key,
            error=str(error),
            attempts=waiting.attempts + asked,
            delay_s=delay_s,
        )


def identified(upload: Upload, facts: ObjectFacts, *, moment: str) -> Upload:
    """Return an upload with what storage says of its object.

    What storage does not tell apart, events may: their order, else the `moment` that they name.
    """
    etag = facts.etag
    if etag is None and facts.version_id is None:
        etag = stand_in_of_event(upload.sequencer or moment)
    return replace(
        upload,
        etag=etag,
        version_id=facts.version_id,
        size=facts.size,
        content_type=upload.content_type or facts.content_type,
    )


def written_event(event: Upload | Removal) -> bytes:
    """Write an event for people, an upload so that it can be sent again."""
    return own_event(event) if isinstance(event, Upload) else json.dumps(asdict(event)).encode()
