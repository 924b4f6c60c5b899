"""Entries of the ingest list end in the ledger and the queue, whatever is sent and whoever dies."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from detection.errors import TransientError
from tests.support.ingest_list import Setting, event
from tests.support.waiting import eventually
from worker.ingest.bridge import BATCH
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.publisher import CeleryPublisher
from worker.storage.interface import ObjectMissing, StorageUnavailable
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.localstack import LocalStack
    from worker.queue.publisher import Publisher
    from worker.settings import Settings


#: Nobody looks whether these bridges live.
UNWATCHED = {"alive": lambda: None}


@pytest.fixture
def setting(redis_client: Redis, engine: Engine, settings: Settings) -> Setting:
    """An empty ingest list and an empty ledger."""
    return Setting(redis_client, engine, settings)


def test_every_shape_becomes_a_row_and_a_message(setting: Setting) -> None:
    """Own, S3 and MinIO entries with several records are registered and published once each."""
    setting.send(
        json.dumps({"v": 1, "bucket": "uploads", "key": "own.jpg", "etag": "e"}).encode(),
        json.dumps({"Records": [event("s3+1.jpg"), event("s3+2.jpg")]}).encode(),
        json.dumps([{"Event": [event("minio.jpg")], "EventTime": "t"}]).encode(),
    )
    setting.drain(setting.bridge())
    assert setting.states() == dict.fromkeys(
        ["own.jpg", "s3 1.jpg", "s3 2.jpg", "minio.jpg"], "pending"
    )
    assert len(set(setting.publisher.sent)) == len(setting.publisher.sent) == 4
    assert setting.left() == 0


def test_sending_every_event_twice_more_changes_nothing(setting: Setting) -> None:
    """Repeats, in one batch and in later ones, add neither rows nor messages."""
    events = [event(f"{n}.jpg") for n in range(50)]
    bridge = setting.bridge()
    setting.send(*events, *events)
    setting.drain(bridge)
    setting.send(*events)
    setting.drain(bridge)
    assert len(setting.states()) == 50
    assert len(setting.publisher.sent) == 50
    assert (setting.count("registered"), setting.count("duplicates")) == (50, 100)


def test_more_entries_than_a_batch(setting: Setting) -> None:
    """A long list is worked off in batches."""
    setting.send(*(event(f"{n}.jpg") for n in range(2 * BATCH + 10)))
    setting.drain(setting.bridge())
    assert len(setting.states()) == 2 * BATCH + 10
    assert setting.left() == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1), (0, 0, 1, 1)])
def test_created_and_removed_in_any_order_end_withdrawn(
    setting: Setting, order: Sequence[int]
) -> None:
    """The sequencer decides, not the order of arrival; across batches as within one."""
    pair = (event("a.jpg"), event("a.jpg", "ObjectRemoved:Delete", sequencer="20"))
    for one in order:
        setting.send(pair[one])
        setting.drain(setting.bridge())
    setting.send(*({**pair[one]} for one in order))
    setting.drain(setting.bridge())
    assert setting.states() == {"a.jpg": "withdrawn"}


def test_garbage_is_kept_with_its_reason_and_harms_nobody(setting: Setting) -> None:
    """Bad entries between good ones are counted, truncated and bounded in number."""
    bridge = setting.bridge(settings=setting.settings.redis.model_copy(update={"rejected_max": 3}))
    setting.send(
        event("a.jpg"),
        b"\xff" * 5000,
        b"{}",
        b"[" * 9000,
        json.dumps({"v": 1, "bucket": "secrets", "key": "a.jpg", "etag": "e"}).encode(),
        event("b.txt"),
        event("c.jpg"),
    )
    setting.drain(bridge)
    assert setting.states() == {"a.jpg": "pending", "c.jpg": "pending"}
    kept = [json.loads(note) for note in setting.redis.lrange(f"{setting.ingest}:rejected", 0, -1)]
    assert [note["reason"] for note in kept] == [
        "bucket_not_allowed",
        "event_too_deep",
        "unknown_shape",
    ]
    assert max(len(note["entry"]) for note in kept) <= 2048
    assert setting.count("rejected", reason="not_json") == 1
    assert setting.count("ignored", reason="extension") == 1


@pytest.mark.parametrize("room", [True, False])
def test_a_huge_entry_is_refused_without_reading_it(setting: Setting, *, room: bool) -> None:
    """Of 20 MB in one entry little leaves Redis, even when that entry fills its memory."""

    def sent_bytes() -> int:
        return int(setting.redis.info("stats")["total_net_output_bytes"])

    setting.send(event("a.jpg"), b"x" * 20_000_000, event("b.jpg"))
    before = sent_bytes()
    setting.redis.config_set("maxmemory", 0 if room else 1)
    try:
        bridge = setting.bridge()
        bridge.step()
    finally:
        setting.redis.config_set("maxmemory", 0)
    assert sent_bytes() - before < 1_000_000
    assert setting.states() == {"a.jpg": "pending", "b.jpg": "pending"}
    assert setting.left() == 0
    assert setting.count("rejected", reason="event_too_large") == 1


def test_an_event_without_identity_is_completed_by_storage(setting: Setting) -> None:
    """MinIO may send neither tag nor version: the object is asked for its own."""
    stored = setting.storage.put("uploads", "a.jpg", b"bytes", content_type="image/jpeg")
    for key in ("a.jpg", "gone.jpg"):
        setting.send(json.dumps({"v": 1, "bucket": "uploads", "key": key}).encode())
    setting.drain(setting.bridge())
    with setting.engine.connect() as connection:
        row = connection.execute(text("SELECT etag, size_bytes FROM app.images")).one()
    assert tuple(row) == (stored.etag, 5)
    assert setting.count("rejected", reason=ObjectMissing.reason) == 1


def test_what_storage_cannot_say_now_waits_without_holding_up_the_rest(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While storage is away only the uploads that need it wait, aside from the list."""
    monkeypatch.setattr("worker.ingest.completion.FIRST_DELAY_S", 0.0)

    class Away(MemoryStorage):
        def head(self, *_: object, **__: object) -> Any:
            raise StorageUnavailable

    setting.send(json.dumps({"v": 1, "bucket": "uploads", "key": "a.jpg"}).encode(), event("b.jpg"))
    setting.bridge(storage=Away(["uploads"])).step()
    assert setting.states() == {"b.jpg": "pending"}
    assert (setting.left(), setting.waiting()) == (0, 1)
    setting.storage.put("uploads", "a.jpg", b"bytes", content_type="image/jpeg")
    setting.bridge().step()
    assert setting.states().keys() == {"a.jpg", "b.jpg"}
    assert setting.waiting() == 0


class Killed(BaseException):
    """Stands for the death of the bridge: nothing after it runs."""


class Dying:
    """Wraps a service so that the bridge dies before or after a call of one of its methods."""

    def __init__(self, service: object, method: str, *, call: int, after: bool) -> None:
        self._service, self._method, self._after = service, method, after
        self._calls_left = call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if name != self._method:
            return found

        def die(*args: Any, **kwargs: Any) -> Any:
            self._calls_left -= 1
            if self._calls_left:
                return found(*args, **kwargs)
            if self._after:
                found(*args, **kwargs)
            raise Killed

        return die


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("part", "method", "call"),
    [
        pytest.param("redis", "eval", 1, id="moving"),
        pytest.param("redis", "eval", 2, id="reading"),
        pytest.param("redis", "pipeline", 1, id="removing"),
        pytest.param("ledger", "register", 1, id="registering"),
        pytest.param("publisher", "publish", 1, id="publishing"),
    ],
)
def test_a_bridge_killed_between_steps_loses_nothing(
    setting: Setting, part: str, method: str, call: int, *, after: bool
) -> None:
    """Whatever step a bridge dies at, another one takes its entries over and finishes."""
    setting.send(*(event(f"{n}.jpg") for n in range(3)))
    dying = Dying(getattr(setting, part), method, call=call, after=after)
    with pytest.raises(Killed):
        setting.bridge("dead", **{part: dying}).step()
    setting.redis.delete(f"{setting.ingest}:bridge:dead")  # its sign of life runs out
    setting.drain(setting.bridge("heir"))
    assert setting.states() == dict.fromkeys(["0.jpg", "1.jpg", "2.jpg"], "pending")
    assert len(set(setting.publisher.sent)) == 3
    assert setting.left() == 0


def test_a_living_bridge_keeps_its_entries(setting: Setting) -> None:
    """Only the lists of bridges without a sign of life are taken over."""
    setting.redis.rpush(f"{setting.ingest}:processing:other", b"{}")
    setting.redis.set(f"{setting.ingest}:bridge:other", b"1")
    assert setting.bridge().take_over() == 0


def test_two_bridges_at_once_are_harmless(setting: Setting) -> None:
    """Bridges that share a list, even one name, make one row and no fewer messages."""
    setting.send(*(event(f"{n}.jpg") for n in range(600)))
    stop = threading.Event()
    threads = [
        threading.Thread(target=setting.bridge(name).run, args=(stop,), kwargs=UNWATCHED)
        for name in ("one", "two", "two")
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: setting.left() == 0, what="an empty list")
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert len(setting.states()) == 600
    assert len(set(setting.publisher.sent)) == 600


def test_a_broker_that_refuses_delays_messages_only(setting: Setting) -> None:
    """Rows are committed although publishing fails, and published when it works again."""
    setting.send(event("a.jpg"))
    setting.publisher.failing = True
    with pytest.raises(TransientError):
        setting.bridge().step()
    assert setting.states() == {"a.jpg": "pending"}
    assert setting.publisher.sent == []
    setting.publisher.failing = False
    setting.drain(setting.bridge())
    assert len(setting.publisher.sent) == 1


def test_a_full_redis_is_emptied(setting: Setting) -> None:
    """At maxmemory the list is read in place, committed and removed; the sweeper publishes."""
    setting.send(*(event(f"{n}.jpg") for n in range(20)), b"garbage")
    setting.redis.config_set("maxmemory-policy", "noeviction")
    setting.redis.config_set("maxmemory", "1")
    try:
        bridge = setting.bridge()
        for _ in range(3):
            bridge.step()
    finally:
        setting.redis.config_set("maxmemory", "0")
    assert len(setting.states()) == 20
    assert setting.left() == 0
    assert setting.publisher.sent == []
    assert setting.count("rejected", reason="not_json") == 1


def test_outages_are_waited_out(setting: Setting, stack: LocalStack) -> None:
    """A bridge survives the loss of Postgres and goes on by itself."""
    stop = threading.Event()
    thread = threading.Thread(target=setting.bridge().run, args=(stop,), kwargs=UNWATCHED)
    thread.start()
    stack.postgres.stop()
    setting.send(event("a.jpg"))
    eventually(lambda: setting.count("outages") > 0, what="an outage")
    stack.postgres.start()
    eventually(lambda: setting.left() == 0, what="an empty list")
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert setting.states() == {"a.jpg": "pending"}


def test_messages_carry_ids_to_the_right_queue(setting: Setting) -> None:
    """The real publisher sends JSON with one id; priority uploads have a queue of their own."""
    app = build_app(setting.settings)
    publisher: Publisher = CeleryPublisher(app, setting.ledger)
    for key, priority in (("a.jpg", False), ("b.jpg", True)):
        entry = {"v": 1, "bucket": "uploads", "key": key, "etag": "e", "priority": priority}
        setting.send(json.dumps(entry).encode())
    setting.drain(setting.bridge(publisher=publisher))
    app.close()
    prefix = setting.settings.redis.key_prefix
    tasks = []
    for queue in (queues.SCORE, queues.SCORE_PRIORITY):
        (raw,) = setting.redis.lrange(prefix + queue, 0, -1)
        tasks.append(json.loads(raw)["headers"]["task"])
    assert tasks == [queues.SCORE_TASK] * 2
    with setting.engine.connect() as connection:
        unstamped = connection.scalar(
            text("SELECT count(*) FROM app.images WHERE published_at IS NULL")
        )
    assert unstamped == 0
