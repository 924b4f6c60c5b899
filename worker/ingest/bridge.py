"""The bridge: entries of the ingest list become rows of the ledger, then messages of the queue.

An entry moves from `ingest` to this bridge's own list, is parsed and committed to the ledger,
published, and only then removed. A bridge may die between any two steps: what its list still holds
is done again by it or by another one, and doing it again changes nothing. Uploads that storage has
to complete first are set aside, so that no entry waits for storage.

Keys, all under the prefix of the settings:
    ingest                      the list that producers append to
    ingest:processing:<name>    entries that bridge <name> works on
    ingest:bridge:<name>        expires when bridge <name> was not seen for a while
    ingest:waiting              uploads without version and etag, set aside until they have one
    ingest:rejected             refused entries, truncated, the newest first
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from detection.errors import TransientError
from worker.backoff import backoff_s
from worker.ingest.completion import Completion, written_event
from worker.ingest.entries import EntryReader, groups
from worker.ingest.events import MAX_ENTRY_BYTES
from worker.ingest.registrar import Registrar
from worker.ingest.rejected import RejectedEntries, rejected_key
from worker.ingest.waiting import WaitingEvents
from worker.telemetry.tracer import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from threading import Event as Stop

    from redis import Redis

    from worker.ingest.bridge_metrics import BridgeMetrics
    from worker.ingest.entries import Entry
    from worker.ledger.interface import Ledger
    from worker.queue.publisher import Publisher
    from worker.settings import S3
    from worker.settings import Redis as RedisSettings
    from worker.storage.interface import Storage
    from worker.telemetry.tracer import Tracer

_log = structlog.get_logger(__name__)

#: Number of entries, and of their bytes, that are read at once.
BATCH = 256
BATCH_BYTES = 4 * MAX_ENTRY_BYTES
#: How long one wait for an entry lasts; a stop is noticed after it at the latest.
WAIT_S = 1
#: How often a waiting bridge looks. It does not block in BLMOVE, whose answer is the entry itself.
POLL_S = 0.05
#: How often it is looked whether uploads that were set aside are due.
LOOK_S = 0.2
#: A bridge not seen for this long is dead, and its entries are taken over by another one, which
#: looks every `TAKE_OVER_S`: within a minute together. Taking over from one that was only slow is
#: harmless.
ALIVE_S = 45
TAKE_OVER_S = 10.0
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

#: Reads up to ARGV[1] entries at the head of KEYS[1], until they have ARGV[3] bytes together. What
#: has more than ARGV[2] bytes leaves the list and is read one byte beyond that: a bridge has room
#: for every event, not for everything.
_HEAD = """
local entries, limit, index, bytes = {}, tonumber(ARGV[2]), 0, 0
while #entries < tonumber(ARGV[1]) and bytes < tonumber(ARGV[3]) do
    local entry = redis.call('LINDEX', KEYS[1], index)
    if not entry then break end
    if #entry > limit then
        redis.call('LREM', KEYS[1], 1, entry)
        entry = string.sub(entry, 1, limit + 1)
    else
        index = index + 1
    end
    entries[#entries + 1] = entry
    bytes = bytes + #entry
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
        storage_settings: S3,
        plain_keys: bool = True,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._redis = redis
        self._reader = EntryReader(buckets=frozenset(buckets), plain_keys=plain_keys)
        self._metrics = metrics
        self._name = name
        self._ingest = settings.key_prefix + settings.ingest_key
        self._processing = f"{self._ingest}:processing:"
        self._alive = f"{self._ingest}:bridge:"
        self._mine = self._processing + name
        self._looked_at = float("-inf")
        self._registrar = Registrar(
            ledger=ledger, publisher=publisher, metrics=metrics, tracer=tracer
        )
        self._rejected = RejectedEntries(
            redis,
            rejected_key(settings),
            longest=settings.rejected_max,
            kept_bytes=KEPT_BYTES,
            metrics=metrics,
        )
        self._waiting = WaitingEvents(redis, f"{self._ingest}:waiting")
        self._completion = Completion(
            storage=storage,
            settings=storage_settings,
            waiting=self._waiting,
            registrar=self._registrar,
            rejected=self._rejected,
            metrics=metrics,
            last_read=ledger.last_read,
        )

    def run(self, stop: Stop, *, alive: Callable[[], object]) -> None:
        """Work until `stop` is set; services that are away are waited for, ever more patiently.

        `alive` is called before every round. When it ends, for whatever cause, `stop` is set.
        """
        _log.info("bridge_started", bridge=self._name)
        with ThreadPoolExecutor(1, thread_name_prefix="completion") as pool:
            completing = pool.submit(self._repeat, self._completion.step, stop, pause_s=LOOK_S)

            def before() -> None:
                alive()
                if completing.done() and not stop.is_set():
                    completing.result()

            try:
                self._repeat(self.intake, stop, before=before)
            finally:
                stop.set()
                self._completion.close()
            completing.result()
        _log.info("bridge_stopped", bridge=self._name)

    def _repeat(
        self,
        work: Callable[[], int],
        stop: Stop,
        *,
        pause_s: float = 0.0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Repeat until `stop` is set, with a pause after a round without work."""
        delay_s, failures = 0.0, 0
        while not stop.wait(delay_s):
            before()
            try:
                delay_s = 0.0 if work() else pause_s
                failures = 0
            except (TransientError, RedisError) as error:
                delay_s = backoff_s(failures, first_s=FIRST_DELAY_S, longest_s=LONGEST_DELAY_S)
                failures += 1
                self._metrics.outages.inc()
                _log.warning("bridge_backed_off", error=str(error), delay_s=delay_s)

    def step(self, *, wait_s: int = WAIT_S) -> int:
        """Do one batch of entries, waiting for the first one, and one of what was set aside.

        Returns how many entries were done. Raises `TransientError` or `RedisError` when a service
        is away; nothing is lost by that.
        """
        done = self.intake(wait_s)
        self._completion.step()
        return done

    def intake(self, wait_s: int = WAIT_S) -> int:
        """Do one batch of entries; `step` without what was set aside."""
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
        """Renew the sign of life, and look for bridges that died now and then."""
        self._redis.set(self._alive + self._name, b"1", ex=ALIVE_S)
        if time.monotonic() - self._looked_at >= TAKE_OVER_S:
            self.take_over()
            self._looked_at = time.monotonic()

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
        """Do the entries at the head of a list and remove them; returns how many they were."""
        read_at = time.monotonic()
        # The client is built without decode_responses, which its types cannot tell.
        raws = cast(
            "list[bytes]",
            self._redis.eval(_HEAD, 1, key, str(BATCH), str(MAX_ENTRY_BYTES), str(BATCH_BYTES)),
        )
        self._finish(key, self.take_in(raws, publish=publish, read_at=read_at))
        return len(raws)

    def take_in(self, raws: Sequence[bytes], *, publish: bool, read_at: float) -> list[Entry]:
        """Commit and publish what entries say; what they leave to complete is up to the caller.

        Raises `TransientError` or `RedisError` when a service is away; then all must wait.
        """
        entries = [self._reader.read(raw) for raw in raws]
        for group in groups(entries):
            events = [event for entry in group for event in entry.events]
            failed = self._registrar.keep(events, publish=publish, read_at=read_at)
            for event, failure in failed:
                self._rejected.add(written_event(event), failure)
        return entries

    def _finish(self, key: str, entries: list[Entry]) -> None:
        """Remove entries whose events are committed; what they leave to complete is set aside."""
        for entry in entries:
            if not entry.incomplete:
                self.note(entry)
        with self._redis.pipeline(transaction=False) as pipeline:
            for entry in entries:
                if not entry.incomplete:
                    pipeline.lrem(key, 1, entry.raw)  # type: ignore[arg-type]  # bytes are fine
            pipeline.execute()
        for entry in entries:
            if entry.incomplete:
                self._waiting.put(key, entry.raw, entry.incomplete)
                self.note(entry)

    def note(self, entry: Entry) -> None:
        """Count an entry that is done, with what it did not ask for, or may not."""
        self._metrics.received.inc()
        for record, error in entry.refused:
            self._rejected.add(record, error)
        for event in entry.ignored:
            self._metrics.ignored.labels(event.reason).inc()
            if event.hint:
                _log.warning("entry_ignored", reason=event.reason, hint=event.hint)
