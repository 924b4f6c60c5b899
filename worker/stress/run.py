"""Sending a load to a deployment and waiting for the end of every upload.

Uploads go where a platform's go: the object into the bucket, its event onto the ingest list. They
are sent at their times whether or not the deployment keeps up; only the calm ones wait for the end
of the others. Times of arrival are put on Postgres' clock, by which the ledger says when an image
ended.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import structlog
from redis.exceptions import RedisError
from sqlalchemy import func, select

from detection.errors import TransientError
from worker.database.engine import transaction
from worker.ingest.events import own_event
from worker.ledger.interface import State, Upload
from worker.ledger.tables import Image, VerdictRow
from worker.queue import names as queues

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis
    from sqlalchemy import ColumnElement, Engine

    from worker.settings import Settings
    from worker.storage.interface import Storage
    from worker.stress.load import Item

_log = structlog.get_logger(__name__)

_SENDERS = 16
#: No more uploads than this are held for storage that is slow; the run is late then, and says so.
_HELD = 4 * _SENDERS
_SAMPLE_S = 1.0


class _Sent(NamedTuple):
    """When an upload's event was sent, by Postgres' clock, and to which latencies it counts."""

    at: datetime
    priority: bool
    calm: bool


@dataclass(slots=True)
class StressOutcome:
    """What was sent and what became of it; times in seconds since the start of the run.

    `latencies_s` are all of them, the two others the priority uploads' and the calm ones'.
    """

    events: int = 0
    duplicates_sent: int = 0
    bad_sent: int = 0
    not_sent: int = 0
    lost: int = 0
    extra_rows: int = 0
    double_verdicts: int = 0
    elapsed_s: float = 0.0
    late_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    priority_s: list[float] = field(default_factory=list)
    calm_s: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    depth: list[tuple[float, int]] = field(default_factory=list)


class Stress:
    """One run against the deployment of the settings; its objects share a prefix of their own."""

    def __init__(
        self, settings: Settings, *, engine: Engine, redis: Redis, storage: Storage
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._redis = redis
        self._storage = storage
        self._bucket = settings.s3.buckets[0]
        self._prefix = f"stress/{uuid4().hex}/"
        self._ingest = settings.redis.key_prefix + settings.redis.ingest_key
        self._since = datetime.now(UTC)
        self._sent: dict[str, _Sent] = {}
        self._outcome = StressOutcome()
        self._lock = threading.Lock()
        self._held = threading.Semaphore(_HELD)

    def run(self, items: Iterable[Item], *, drain_s: float) -> StressOutcome:
        """Send everything, wait at most `drain_s` for the rest to end, and count.

        The calm ones wait as long, and no longer, for the end of the others.
        """
        offset = self._read_clock()
        start = begun = time.monotonic()
        calm = False
        done = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(start, done), daemon=True)
        sampler.start()
        being_sent: set[Future[None]] = set()
        with ThreadPoolExecutor(_SENDERS, thread_name_prefix="stress") as senders:
            for item in items:
                if item.calm and not calm:
                    # What is not sent yet would not be waited for.
                    wait(being_sent)
                    self._drain(drain_s, done)
                    calm, begun = True, time.monotonic() - item.at_s
                due = begun + item.at_s
                wait_s = due - time.monotonic()
                if wait_s > 0:
                    done.wait(wait_s)
                self._held.acquire()
                sending = senders.submit(self._send, item, offset, due)
                being_sent.add(sending)
                sending.add_done_callback(lambda _: self._held.release())
                sending.add_done_callback(being_sent.discard)
        self._drain(drain_s, done)
        done.set()
        sampler.join()
        self._outcome.elapsed_s = time.monotonic() - start
        self._count()
        return self._outcome

    def _drain(self, longest_s: float, done: threading.Event) -> None:
        deadline = time.monotonic() + longest_s
        while self._waiting() and time.monotonic() < deadline:
            done.wait(_SAMPLE_S)

    def _read_clock(self) -> timedelta:
        """Return how far Postgres' clock is ahead of ours, and note it as the run's beginning."""
        with transaction(self._engine) as connection:
            before = datetime.now(UTC)
            self._since = connection.execute(select(func.clock_timestamp())).scalar_one()
            return self._since - before - (datetime.now(UTC) - before) / 2

    def _ours(self) -> ColumnElement[bool]:
        """Select the rows of this run; by their time first, for which there is an index."""
        return (
            (Image.created_at >= self._since)
            & (Image.bucket == self._bucket)
            & Image.key.startswith(self._prefix, autoescape=True)
        )

    def _send(self, item: Item, offset: timedelta, due: float) -> None:
        key = self._prefix + item.name
        late_s = time.monotonic() - due
        try:
            facts = self._storage.put(self._bucket, key, item.body, content_type=item.content_type)
            event = own_event(
                Upload(
                    bucket=self._bucket,
                    key=key,
                    etag=facts.etag,
                    source="stress",
                    priority=item.priority,
                )
            )
            sent_at = datetime.now(UTC) + offset
            for _ in range(item.copies):
                self._redis.rpush(self._ingest, event)
        except (TransientError, RedisError) as error:
            _log.warning("upload_failed", key=key, error=str(error))
            with self._lock:
                self._outcome.not_sent += 1
            return
        with self._lock:
            self._sent[key] = _Sent(sent_at, item.priority, item.calm)
            self._outcome.events += item.copies
            self._outcome.duplicates_sent += item.copies - 1
            self._outcome.bad_sent += item.bad
            self._outcome.late_s = max(self._outcome.late_s, late_s)

    def _sample(self, begun: float, done: threading.Event) -> None:
        prefix = self._settings.redis.key_prefix
        lists = [self._ingest, *(prefix + queue for queue in queues.IMAGE_QUEUES)]
        while not done.wait(_SAMPLE_S):
            try:
                bridges = [*self._redis.scan_iter(match=f"{self._ingest}:processing:*", count=1000)]
                total = sum(self._redis.llen(key) for key in (*lists, *bridges))
            except RedisError:
                continue  # a gap in the curve says so
            self._outcome.depth.append((time.monotonic() - begun, total))

    def _waiting(self) -> int:
        ended = select(func.count()).where(self._ours(), Image.state != State.PENDING)
        try:
            with transaction(self._engine) as connection:
                return len(self._sent) - int(connection.execute(ended).scalar_one())
        except TransientError:
            return len(self._sent)

    def _count(self) -> None:
        outcome = self._outcome
        ours = self._ours()
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(Image.key, Image.state, Image.reason, Image.state_since).where(ours)
            ).all()
            verdicts = connection.execute(
                select(VerdictRow.image_id, VerdictRow.model_version, func.count())
                .join(Image, Image.id == VerdictRow.image_id)
                .where(ours)
                .group_by(VerdictRow.image_id, VerdictRow.model_version)
            ).all()
        ended = [row for row in rows if row.state != State.PENDING]
        outcome.states = Counter(row.state for row in rows)
        outcome.reasons = Counter(row.reason for row in rows if row.reason)
        outcome.lost = len(self._sent.keys() - {row.key for row in ended})
        outcome.extra_rows = len(rows) - len({row.key for row in rows})
        outcome.double_verdicts = sum(count > 1 for _, _, count in verdicts)
        took = sorted(
            ((row.state_since - sent.at).total_seconds(), sent.priority, sent.calm)
            for row in ended
            if (sent := self._sent.get(row.key))
        )
        outcome.latencies_s = [took_s for took_s, _, _ in took]
        outcome.priority_s = [took_s for took_s, priority, _ in took if priority]
        outcome.calm_s = [took_s for took_s, _, calm in took if calm]
