"""Completes uploads that name neither version nor etag: storage is asked which object they mean.

They wait in a set of their own, so that storage that is slow, away or odd holds up nobody else:
what storage cannot say now is put off, ever longer, within the budget of
`worker.scoring.storage_budget`. While storage gives nothing to anybody, none is asked for.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from detection.errors import PermanentError, TransientError
from worker.ingest.events import parse
from worker.ingest.waiting import WaitingUpload, read_member
from worker.ledger.interface import Upload
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
    from collections.abc import Callable, Collection

    from worker.ingest.bridge_metrics import BridgeMetrics
    from worker.ingest.registrar import Registrar
    from worker.ingest.rejected import RejectedEntries
    from worker.ingest.waiting import WaitingUploads
    from worker.settings import S3
    from worker.storage.interface import Storage

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


@dataclass(frozen=True, slots=True)
class _Member:
    raw: bytes
    waiting: WaitingUpload
    #: What storage made of it; None while it was not asked.
    answer: Upload | Exception | None = None


class Completion:
    """Works off the uploads that wait; `close` ends what it began."""

    def __init__(
        self,
        *,
        storage: Storage,
        settings: S3,
        buckets: Collection[str],
        waiting: WaitingUploads,
        registrar: Registrar,
        rejected: RejectedEntries,
        metrics: BridgeMetrics,
        last_read: Callable[[], Upload | None],
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._buckets = frozenset(buckets)
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
        raws = self._waiting.claim(BATCH)
        if not raws:
            return 0
        members = [_Member(raw, read_member(raw)) for raw in raws]
        now = self._waiting.now()
        deadline = time.monotonic() + ASK_S
        with ThreadPoolExecutor(min(THREADS, len(members))) as pool:
            members = list(pool.map(lambda one: self._ask(one, now, deadline), members))
        self._settle(members, read_at=read_at)
        return len(members)

    def _ask(self, member: _Member, now: float, deadline: float) -> _Member:
        """Ask for one object; never raises."""
        if self._breaker.is_paused or time.monotonic() > deadline:
            return member
        waiting = member.waiting
        try:
            answer: Upload | Exception = self._complete(waiting, now)
        except PermanentError as error:
            answer = error
        except TransientError as error:
            answer = error
        except Exception as error:  # noqa: BLE001 - a bug must not hold up the others
            _log.exception("completion_failed")
            unexpected = AnswerUnusable(f"Unexpected {type(error).__name__} in the bridge.")
            answer = self._within_budget(unexpected, waiting, now)
        return replace(member, answer=answer)

    def _complete(self, waiting: WaitingUpload, now: float) -> Upload:
        (upload,) = parse(waiting.event, buckets=self._buckets)
        if not isinstance(upload, Upload):
            message = "A waiting event is no upload any more."
            raise TypeError(message)
        try:
            facts = self._storage.head(upload.bucket, upload.key)
        except (AccessDenied, StorageUnavailable) as error:
            judged = self._breaker.judge(upload, error, attempt=waiting.attempts + 1)
            raise self._within_budget(judged, waiting, now) from error
        self._breaker.record_success(upload)
        etag = facts.etag
        if etag is None and facts.version_id is None:
            # What storage does not tell apart, events may: their order, else their time.
            moment = upload.uploaded_at.isoformat() if upload.uploaded_at else str(waiting.since)
            etag = stand_in_of_event(upload.sequencer or moment)
        return replace(
            upload,
            etag=etag,
            version_id=facts.version_id,
            size=facts.size,
            content_type=upload.content_type or facts.content_type,
        )

    def _within_budget(self, error: Exception, waiting: WaitingUpload, now: float) -> Exception:
        tried_for = timedelta(seconds=now - waiting.since)
        return within_budget(error, self._settings, tries=waiting.tries, tried_for=tried_for)

    def _settle(self, members: list[_Member], *, read_at: float) -> None:
        """Commit what is complete, refuse what never will be, and put off the rest."""
        completed = {
            id(member.answer): member for member in members if isinstance(member.answer, Upload)
        }
        uploads = [m.answer for m in completed.values() if isinstance(m.answer, Upload)]
        for upload, failure in self._registrar.keep(uploads, publish=True, read_at=read_at):
            self._rejected.add(completed[id(upload)].waiting.event, failure)
        done = [member.raw for member in completed.values()]
        for member in members:
            error = member.answer
            if isinstance(error, PermanentError):
                self._rejected.add(member.waiting.event, error)
                done.append(member.raw)
            elif isinstance(error, Exception):
                self._put_off(member, error)
            elif error is None:
                self._waiting.put_off(member.raw, delay_s=0.0, counted=False, asked=False)
        self._waiting.remove(done)

    def _put_off(self, member: _Member, error: Exception) -> None:
        asked = not isinstance(error, StorageForbidden)
        delay_s = min(FIRST_DELAY_S * 2.0**member.waiting.attempts, LONGEST_DELAY_S)
        self._waiting.put_off(member.raw, delay_s=delay_s, counted=counts(error), asked=asked)
        self._metrics.put_off.inc()
        _log.info(
            "upload_waits",
            upload=member.waiting.event.decode(),
            error=str(error),
            attempts=member.waiting.attempts + asked,
            delay_s=delay_s,
        )
