"""The bridge: entries of the ingest list become rows of the ledger, then messages of the queue.

An entry moves from `ingest` to this bridge's own list, is parsed and committed to the ledger,
published, and only then removed. A bridge may die between any two steps: what its list still holds
is done again by it or by another one, and doing it again changes nothing.

Keys, all under the prefix of the settings:
    ingest                      the list that producers append to
    ingest:processing:<name>    entries that bridge <name> works on
    ingest:bridge:<name>        expires when bridge <name> was not seen for a while
    ingest:rejected             refused entries, truncated, the newest first
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, cast

import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from detection.errors import PermanentError, TransientError
from worker.ingest.events import MAX_ENTRY_BYTES, Ignored, parse
from worker.ingest.key_encoding import settle
from worker.ledger.interface import Removal, Upload
from worker.telemetry.tracing import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from threading import Event as Stop

    from redis import Redis

    from worker.ingest.bridge_metrics import BridgeMetrics
    from worker.ingest.events import Event
    from worker.ledger.interface import Ledger, Registration
    from worker.queue.publisher import Publisher
    from worker.settings import Redis as RedisSettings
    from worker.storage.interface import Storage
    from worker.telemetry.tracing import Tracer

_log = structlog.get_logger(__name__)

BATCH = 256
#: How long one wait for an entry lasts; a stop is noticed after it at the latest.
WAIT_S = 1
#: How often a waiting bridge looks. It does not block in BLMOVE, whose answer is the entry itself.
POLL_S = 0.05
#: A bridge not seen for this long is dead, and its entries are taken over. Taking over from one
#: that was only slow is harmless.
ALIVE_S = 60
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
#: How much of a refused entry is kept, in bytes.
KEPT_BYTES = 2048

#: Moves up to ARGV[1] entries from KEYS[1] to KEYS[2]; returns how many, and not the entries.
_MOVE = """
local moved = 0
while moved < tonumber(ARGV[1]) and redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') do
    moved = moved + 1
end
return moved
"""

#: Reads up to ARGV[1] entries at the head of KEYS[1]. What has more than ARGV[2] bytes leaves the
#: list and is read one byte beyond that: a bridge has room for every event, not for everything.
_HEAD = """
local entries, limit, index = {}, tonumber(ARGV[2]), 0
while #entries < tonumber(ARGV[1]) do
    local entry = redis.call('LINDEX', KEYS[1], index)
    if not entry then break end
    if #entry > limit then
        redis.call('LREM', KEYS[1], 1, entry)
        entry = string.sub(entry, 1, limit + 1)
    else
        index = index + 1
    end
    entries[#entries + 1] = entry
end
return entries
"""


class Bridge:
    """One bridge; several may run at once. `name` is its own and survives its restarts.

    `plain_keys` says that the store may write keys of S3's records without encoding them.
    """

    def __init__(
        self,
        *,
        redis: Redis,
        ledger: Ledger,
        publisher: Publisher,
        storage: Storage,
        buckets: Collection[str],
        settings: RedisSettings,
        metrics: BridgeMetrics,
        name: str,
        plain_keys: bool = True,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._publisher = publisher
        self._storage = storage
        self._buckets = frozenset(buckets)
        self._plain_keys = plain_keys
        self._metrics = metrics
        self._tracer = tracer
        self._name = name
        self._rejected_max = settings.rejected_max
        self._ingest = settings.key_prefix + settings.ingest_key
        self._processing = f"{self._ingest}:processing:"
        self._alive = f"{self._ingest}:bridge:"
        self._rejected = f"{self._ingest}:rejected"
        self._mine = self._processing + name

    def run(self, stop: Stop, *, alive: Callable[[], object]) -> None:
        """Work until `stop` is set; services that are away are waited for, ever more patiently.

        `alive` is called before every round.
        """
        delay_s = 0.0
        _log.info("bridge_started", bridge=self._name)
        while not stop.wait(delay_s):
            alive()
            try:
                self.step()
                delay_s = 0.0
            except (TransientError, RedisError) as error:
                delay_s = min(max(2 * delay_s, FIRST_DELAY_S), LONGEST_DELAY_S)
                self._metrics.outages.inc()
                _log.warning("bridge_backed_off", error=str(error), delay_s=delay_s)
        _log.info("bridge_stopped", bridge=self._name)

    def step(self, *, wait_s: int = WAIT_S) -> int:
        """Work on one batch, waiting for its first entry; return how many entries were done.

        Raises `TransientError` or `RedisError` when a service is away; nothing is lost by that.
        """
        try:
            self._touch_alive()
            self._take(wait_s)
        except OutOfMemoryError:
            # Moving needs memory that Redis no longer has, while reading and removing do not. If
            # the bridge stopped here, nothing would ever empty the list that fills the memory.
            # Messages need memory too, so the sweeper sends them later.
            _log.warning("redis_memory_exhausted", bridge=self._name)
            done = self._register_entries(self._mine, publish=False)
            return done + self._register_entries(self._ingest, publish=False)
        return self._register_entries(self._mine, publish=True)

    def _touch_alive(self) -> None:
        """Renew the sign of life; when it had expired, also look for bridges that died."""
        if self._redis.set(self._alive + self._name, b"1", ex=ALIVE_S, get=True) is None:
            self.take_over()

    def take_over(self) -> int:
        """Move the entries of dead bridges to this one's list; return how many there were."""
        moved = 0
        for key in self._redis.scan_iter(match=f"{self._processing}*", count=1000):
            name = key.decode().removeprefix(self._processing)
            if name == self._name or self._redis.exists(self._alive + name):
                continue
            while batch := self._move(key.decode(), BATCH):
                moved += batch
        if moved:
            _log.warning("bridge_took_over", bridge=self._name, entries=moved)
        return moved

    def _take(self, wait_s: int) -> None:
        """Fill this bridge's list to a batch; wait only when it is empty."""
        room = BATCH - self._redis.llen(self._mine)
        deadline = time.monotonic() + wait_s
        while room > 0 and not self._move(self._ingest, room):
            if room < BATCH or time.monotonic() >= deadline:
                return
            time.sleep(POLL_S)

    def _move(self, key: str, count: int) -> int:
        """Move entries from the head of a list to the end of this bridge's own."""
        return cast("int", self._redis.eval(_MOVE, 2, key, self._mine, str(count)))

    def _register_entries(self, key: str, *, publish: bool) -> int:
        """Do the entries at the head of a list and remove them; those that must wait stay."""
        read_at = time.monotonic()
        # The client is built without decode_responses, which its types cannot tell.
        raws = cast(
            "list[bytes]", self._redis.eval(_HEAD, 1, key, str(BATCH), str(MAX_ENTRY_BYTES))
        )
        outcomes = self.take_in(raws, publish=publish, read_at=read_at)
        done = [raw for raw, waits_for in zip(raws, outcomes, strict=True) if waits_for is None]
        if done:
            with self._redis.pipeline(transaction=False) as pipeline:
                for raw in done:
                    pipeline.lrem(key, 1, raw)  # type: ignore[arg-type]  # bytes are fine
                pipeline.execute()
        for waits_for in outcomes:
            if waits_for is not None:
                raise waits_for
        return len(done)

    def take_in(
        self, raws: Sequence[bytes], *, publish: bool, read_at: float
    ) -> list[TransientError | None]:
        """Commit and publish what entries say, and refuse what cannot be used.

        Returns, entry by entry, what it must wait for; None means that it is done and may go.
        Raises `TransientError` or `RedisError` when a service is away; then all must wait.
        """
        events: list[Event] = []
        refused: list[tuple[bytes, PermanentError]] = []
        outcomes: list[TransientError | None] = []
        for raw in raws:
            outcome = None
            try:
                events += [
                    complete
                    for event in parse(raw, buckets=self._buckets)
                    for complete in self._complete(event)
                ]
            except PermanentError as error:
                refused.append((raw, error))
            except TransientError as error:
                outcome = error
            outcomes.append(outcome)
        self._keep(events, publish=publish, read_at=read_at)
        for raw, refusal in refused:
            self._reject(raw, refusal)
        self._metrics.received.inc(outcomes.count(None))
        return outcomes

    def _complete(self, event: Event) -> list[Event]:
        """Ask storage which object an event means when the event does not say."""
        if isinstance(event, Ignored):
            return [event]
        settled = settle(event, self._storage) if self._plain_keys else [event]
        return [self._identified(one) for one in settled]

    def _identified(self, event: Upload | Removal) -> Upload | Removal:
        if isinstance(event, Removal) or event.etag or event.version_id:
            return event
        facts = self._storage.head(event.bucket, event.key)
        return replace(
            event,
            etag=facts.etag,
            version_id=facts.version_id,
            size=facts.size,
            content_type=event.content_type or facts.content_type,
        )

    def _keep(self, events: list[Event], *, publish: bool, read_at: float) -> None:
        """Commit events in their order, then publish what has no message yet."""
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
            elif kind is Removal:
                removals = [event for event in group if isinstance(event, Removal)]
                self._metrics.withdrawn.inc(self._ledger.withdraw(removals))
            else:
                for event in group:
                    if isinstance(event, Ignored):
                        self._metrics.ignored.labels(event.reason).inc()
                        if event.hint:
                            _log.warning("entry_ignored", reason=event.reason, hint=event.hint)
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

    def _reject(self, raw: bytes, error: PermanentError) -> None:
        """Count a refused entry and keep the beginning of it with the reason."""
        self._metrics.rejected.labels(error.reason).inc()
        _log.warning("entry_rejected", reason=error.reason, error=str(error))
        note = {
            "at": datetime.now(UTC).isoformat(),
            "reason": error.reason,
            "error": str(error)[:KEPT_BYTES],
            "entry": raw[:KEPT_BYTES].decode(errors="backslashreplace"),
        }
        # A full Redis must not stop the bridge; the counter and the log still know.
        with suppress(OutOfMemoryError), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lpush(self._rejected, json.dumps(note))
            pipeline.ltrim(self._rejected, 0, self._rejected_max - 1)
            pipeline.execute()
