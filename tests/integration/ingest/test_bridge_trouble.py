"""One entry, one record and one object in trouble hold up nobody else."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from tests.support.faults.odd_store import Answer, OddStore, refusal
from tests.support.ingest_list import Setting, event
from tests.support.ledger_contract import verdict
from tests.support.waiting import eventually
from worker.ingest import bridge as bridges
from worker.ingest import completion
from worker.ledger.interface import Lease, Upload
from worker.settings import S3
from worker.storage.interface import AccessDenied, AnswerUnusable, StorageUnavailable
from worker.storage.memory import MemoryStorage
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings

#: Nobody looks whether these bridges live.
UNWATCHED = {"alive": lambda: None}


@pytest.fixture
def setting(redis_client: Redis, engine: Engine, settings: Settings) -> Setting:
    """An empty ingest list and an empty ledger."""
    return Setting(redis_client, engine, settings)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put off is due at once, and storage that gives nothing is asked all the time."""
    monkeypatch.setattr(completion, "FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(completion, "PROBE_S", 0.01)


def bare(key: str, **values: Any) -> bytes:
    """Return an event that names neither version nor etag."""
    return json.dumps({"v": 1, "bucket": "uploads", "key": key} | values).encode()


def records(*some: object) -> bytes:
    """Return one entry of several records."""
    return json.dumps({"Records": some}).encode()


class Odd(MemoryStorage):
    """Fails for keys as told: before its own answer for everything else."""

    def __init__(self) -> None:
        super().__init__(["uploads"])
        self.failing: Callable[[str], Exception | None] = lambda _: None
        self.heads: list[str] = []

    def _find(self, bucket: str, key: str, version_id: str | None) -> Any:
        self.heads.append(key)
        error = self.failing(key)
        if error is not None:
            raise error
        return super()._find(bucket, key, version_id)

    def store(self, *keys: str) -> None:
        """Store objects."""
        for key in keys:
            self.put("uploads", key, key.encode(), content_type="image/jpeg")


# Records ------------------------------------------------------------------------------------------


def test_giant_entries_are_committed_within_the_limits_of_a_statement(setting: Setting) -> None:
    """Eight valid entries of 1,000 records each become 8,000 rows and 8,000 messages."""
    for n in range(8):
        setting.send(records(*(event(f"{n}-{m}.jpg") for m in range(1000))))
    setting.drain(setting.bridge())
    assert len(setting.states()) == len(set(setting.publisher.sent)) == 8000
    assert (setting.left(), setting.rejected()) == (0, [])


def test_one_bad_record_costs_only_itself(setting: Setting) -> None:
    """Of an entry whose records cannot all be used the others are kept; each bad one has a note."""
    good = [event(f"{n}.jpg") for n in range(500)]
    foreign = event("x.jpg") | {"eventTime": "2026-01-02T03:04:05.678Z"}
    foreign["s3"]["bucket"]["name"] = "secrets"
    setting.send(records(*good[:250], {"eventVersion": "2.1"}, foreign, 7, *good[250:]))
    setting.drain(setting.bridge())
    assert len(setting.states()) == 500
    assert setting.left() == 0
    notes = setting.rejected()
    assert [note["reason"] for note in notes] == [
        "invalid_field",
        "bucket_not_allowed",
        "invalid_field",
    ]
    assert [json.loads(note["entry"]) for note in notes][::2] == [7, {"eventVersion": "2.1"}]
    assert setting.count("rejected", reason="invalid_field") == 2


class RefusingLedger:
    """A ledger that does not take some keys, whatever else is with them."""

    def __init__(self, setting: Setting, error: Exception, keys: Sequence[str]) -> None:
        self._ledger = setting.ledger
        self._error = error
        self._keys = frozenset(keys)
        self.calls = 0

    def register(self, uploads: Sequence[Upload]) -> Any:
        """Refuse, or pass on."""
        self.calls += 1
        if self._keys & {upload.key for upload in uploads}:
            raise self._error
        return self._ledger.register(uploads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("bug"), TypeError()])
def test_a_bug_that_one_record_meets_is_no_outage(setting: Setting, error: Exception) -> None:
    """Neighbours in the same entry and in others are kept, at the cost of a few transactions."""
    keys = [f"{n}.jpg" for n in range(600)]
    ledger = RefusingLedger(setting, error, ["13.jpg", "555.jpg"])
    setting.send(records(*map(event, keys[:500])), *map(event, keys[500:]))
    setting.drain(setting.bridge(ledger=ledger))
    assert len(setting.states()) == 598
    assert setting.left() == 0
    assert setting.count("rejected", reason="not_stored") == 2
    assert ledger.calls < 60
    refused = [json.loads(note["entry"])["key"] for note in setting.rejected()]
    assert set(refused) == {"13.jpg", "555.jpg"}


def test_what_the_database_refuses_is_refused_with_its_words(setting: Setting) -> None:
    """A value that breaks a rule of the table ends one record, alone in the list or not."""
    # What parsing lets through and a row cannot hold: stands for every rule that is added later.
    bad = bare("bad.jpg", etag="e", source="s" * 200, size=2**63 - 1)
    ledger = RealRefusal(setting)
    setting.send(bad)
    setting.drain(setting.bridge(ledger=ledger))
    setting.send(bad, *(event(f"{n}.jpg") for n in range(5)))
    setting.drain(setting.bridge(ledger=ledger))
    assert setting.states().keys() == {f"{n}.jpg" for n in range(5)}
    notes = setting.rejected()
    assert [note["reason"] for note in notes] == ["not_stored", "not_stored"]
    assert "sha256" in notes[0]["error"]
    assert "s" * 200 not in notes[0]["error"]  # the rule, not the row


class RealRefusal:
    """A ledger whose rows of one key break a rule of the table."""

    def __init__(self, setting: Setting) -> None:
        self._ledger = setting.ledger

    def register(self, uploads: Sequence[Upload]) -> Any:
        """Break the rule on the way to Postgres."""
        return self._ledger.register(
            [replace(u, sha256="none") if u.key == "bad.jpg" else u for u in uploads]
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


def test_a_bug_that_everything_meets_loses_nothing(setting: Setting) -> None:
    """When no record passes, the fault is the program's: it is raised and the entries stay."""
    keys = [f"{n}.jpg" for n in range(20)]
    ledger = RefusingLedger(setting, ZeroDivisionError(), keys)
    setting.send(*map(event, keys))
    with pytest.raises(ZeroDivisionError):
        setting.bridge(ledger=ledger).step()
    assert (setting.left(), setting.rejected()) == (20, [])
    setting.drain(setting.bridge())
    assert len(setting.states()) == 20


# Storage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StorageUnavailable("503"), AnswerUnusable("400"), AccessDenied("403")]
)
def test_uploads_that_storage_does_not_complete_hold_up_nobody(
    setting: Setting, error: Exception
) -> None:
    """However many there are, later entries go on at once, as do those that storage completes."""
    storage = Odd()
    storage.failing = lambda key: error if key.startswith("odd") else None
    storage.store("fine.jpg")
    odd = [bare(f"odd-{n}.jpg") for n in range(2 * bridges.BATCH)]
    setting.send(bare("fine.jpg"), *odd, *(event(f"{n}.jpg") for n in range(300)))
    bridge = setting.bridge(storage=storage, storage_settings=S3(unreadable_tries=4))
    for _ in range(4):
        bridge.step()
    assert setting.left() == 0
    assert len(setting.states()) == 301
    # They end, beside an object that storage gives.
    eventually(lambda: bridge.step(wait_s=0) + setting.waiting() == 0, what="the end of all")
    reason = getattr(error, "reason", "storage_unreadable")
    assert setting.count("rejected", reason=reason) == len(odd)
    (note,) = [n for n in setting.rejected() if json.loads(n["entry"])["key"] == "odd-0.jpg"]
    assert str(error) in note["error"]


@pytest.mark.parametrize(
    "member",
    [
        b"not json",
        b"[1]",
        b'{"since": 1.0}',
        b'{"since": 1.0, "upload": {"bucket": "uploads", "key": "k", "of_a_later_release": 1}}',
        b'{"since": 1.0, "upload": {"bucket": "uploads", "key": "k", "uploaded_at": "?"}}',
    ],
)
def test_what_no_release_of_today_set_aside_holds_up_nobody(
    setting: Setting, member: bytes
) -> None:
    """A member that cannot be read is refused and kept, and the one beside it is completed."""
    storage = Odd()
    storage.store("fine.jpg")
    setting.redis.zadd(f"{setting.ingest}:waiting", {member: 0.0})
    setting.send(bare("fine.jpg"))
    setting.bridge(storage=storage).step()
    assert setting.waiting() == 0
    assert setting.states() == {"fine.jpg": "pending"}
    (note,) = setting.rejected()
    assert (note["reason"], note["entry"]) == ("waiting_unreadable", member.decode())


@pytest.mark.parametrize("error", [StorageUnavailable("away"), AccessDenied("expired")])
def test_storage_that_gives_nothing_refuses_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """1,500 uploads wait through an outage, are hardly asked for, and are all there after it."""
    monkeypatch.setattr(completion, "PROBE_S", 1.0)
    storage = Odd()
    storage.store(*(f"{n}.jpg" for n in range(1500)))
    storage.failing = lambda _: error
    setting.send(*(bare(f"{n}.jpg") for n in range(1500)))
    bridge = setting.bridge(storage=storage)
    for _ in range(20):
        bridge.step(wait_s=0)
    assert (setting.left(), setting.waiting(), setting.rejected()) == (0, 1500, [])
    assert len(storage.heads) < 100
    storage.failing = lambda _: None
    eventually(
        lambda: bridge.step(wait_s=0) + setting.waiting() == 0, timeout_s=60, what="the end of all"
    )
    assert len(setting.states()) == len(set(setting.publisher.sent)) == 1500
    assert setting.rejected() == []


def test_objects_are_asked_for_side_by_side(setting: Setting) -> None:
    """A store that answers no HEAD before eight are there is no standstill."""
    storage = Odd()
    storage.store(*(f"{n}.jpg" for n in range(8)))
    together = threading.Barrier(8, timeout=20)

    def wait(_: str) -> None:
        together.wait()

    storage.failing = wait
    setting.send(*(bare(f"{n}.jpg") for n in range(8)))
    setting.bridge(storage=storage).step()
    assert len(setting.states()) == 8


def test_slow_storage_does_not_slow_the_bridge(setting: Setting) -> None:
    """While every HEAD hangs, entries that need none are taken in."""
    storage, free, stop = Odd(), threading.Event(), threading.Event()
    storage.store(*(f"slow-{n}.jpg" for n in range(40)))

    def hang(_: str) -> None:
        assert free.wait(60)

    storage.failing = hang
    setting.send(*(bare(f"slow-{n}.jpg") for n in range(40)))
    thread = threading.Thread(
        target=setting.bridge(storage=storage).run, args=(stop,), kwargs=UNWATCHED
    )
    thread.start()
    eventually(lambda: storage.heads, what="a HEAD that hangs")
    setting.send(*(event(f"{n}.jpg") for n in range(1000)))
    eventually(lambda: len(setting.states()) == 1000, what="the rows of the others")
    free.set()
    eventually(lambda: len(setting.states()) == 1040, what="the rows of all")
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_of_one_entry_the_complete_records_go_on(setting: Setting) -> None:
    """What an entry leaves to complete waits by itself, and is done once."""
    storage = Odd()
    storage.failing = lambda key: StorageUnavailable() if key == "odd.jpg" else None
    lacking = event("odd.jpg")
    del lacking["s3"]["object"]["eTag"]
    setting.send(records(event("a.jpg"), lacking, event("b.jpg")))
    bridge = setting.bridge(storage=storage)
    bridge.step()
    assert setting.states().keys() == {"a.jpg", "b.jpg"}
    storage.failing = lambda _: None
    storage.store("odd.jpg")
    bridge.step(wait_s=0)
    assert setting.states().keys() == {"a.jpg", "b.jpg", "odd.jpg"}
    assert setting.waiting() == 0


@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [
        # Dates tell uploads of one key apart; the same date is the same object.
        ({"Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}, None, 1),
        (
            {"Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"},
            {"Last-Modified": "Wed, 21 Oct 2026 07:28:01 GMT"},
            2,
        ),
        # Without a date the events do.
        ({}, {}, 2),
    ],
)
def test_a_store_without_tags_has_uploads_too(
    setting: Setting, first: dict[str, str], second: dict[str, str] | None, rows: int
) -> None:
    """An object without ETag and without Content-Length is registered, once a generation."""
    with OddStore("uploads") as store:
        storage = S3Storage(store.settings())
        bridge = setting.bridge(storage=storage)
        for n, headers in enumerate((first, first if second is None else second)):
            store.answers["a.jpg"] = Answer(headers=headers, body=b"bytes", length="chunks")
            setting.send(bare("a.jpg", uploaded_at=f"2026-10-21T07:28:0{n}Z"))
            bridge.step()
        # Sent again, the last one is known.
        setting.send(bare("a.jpg", uploaded_at="2026-10-21T07:28:01Z"))
        bridge.step()
        storage.close()
    with setting.engine.connect() as connection:
        found = connection.execute(text("SELECT etag, size_bytes FROM app.images")).all()
    assert len(found) == rows
    assert all(row.etag for row in found)
    assert setting.rejected() == []


def test_an_odd_store_ends_every_upload(setting: Setting) -> None:
    """Whatever HEAD and GET answer, each upload is registered or refused with a reason."""
    with OddStore("uploads") as store:
        store.answers = {
            "fine.jpg": Answer(headers={"ETag": '"e"'}, body=b"b"),
            "400.jpg": refusal(400),
            "ssec.jpg": refusal(400, "InvalidRequest"),
            "405.jpg": refusal(405, "MethodNotAllowed"),
            "410.jpg": refusal(410),
            "416.jpg": refusal(416, "InvalidRange"),
            "451.jpg": refusal(451),
            "301.jpg": refusal(301, "PermanentRedirect"),
            "403.jpg": refusal(403, "AccessDenied"),
            "glacier.jpg": lambda method, _: (
                Answer(headers={"ETag": '"g"'})
                if method == "HEAD"
                else refusal(403, "InvalidObjectState")
            ),
        }
        storage = S3Storage(store.settings())
        setting.send(*(bare(key) for key in [*store.answers, "gone.jpg"]))
        bridge = setting.bridge(storage=storage)
        eventually(lambda: bridge.step(wait_s=0) + setting.waiting() == 0, what="the end of all")
        storage.close()
    assert setting.states().keys() == {"fine.jpg", "glacier.jpg"}
    refused = {json.loads(note["entry"])["key"]: note["reason"] for note in setting.rejected()}
    assert refused == {
        "400.jpg": "storage_unreadable",
        "ssec.jpg": "storage_unreadable",
        "405.jpg": "storage_unreadable",
        "416.jpg": "storage_unreadable",
        "301.jpg": "storage_unreadable",
        "410.jpg": "object_missing",
        "gone.jpg": "object_missing",
        "451.jpg": "object_withheld",
        "403.jpg": "access_denied",
    }


def test_a_new_bridge_compares_with_what_workers_have_read(setting: Setting) -> None:
    """Objects in trouble do not hold up the next: the ledger knows one that can be read."""
    storage = Odd()
    storage.failing = lambda key: AnswerUnusable("400") if key.startswith("odd") else None
    storage.store("scored.jpg", "fine.jpg")
    (row,) = setting.ledger.register([Upload(bucket="uploads", key="scored.jpg", etag="e")])
    lease = setting.ledger.lease(row.image_id, worker="w", duration=timedelta(minutes=1))
    assert isinstance(lease, Lease)
    setting.ledger.record([verdict(lease)])
    setting.send(*(bare(f"odd-{n}.jpg") for n in range(40)), bare("fine.jpg"))
    setting.bridge(storage=storage).step()
    assert "fine.jpg" in setting.states()


# Bridges ------------------------------------------------------------------------------------------


def test_a_bridge_that_dies_with_uploads_set_aside_loses_none(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a dead bridge had taken from the set is due again after a while."""
    monkeypatch.setattr("worker.ingest.waiting.CLAIM_S", 0)
    storage = Odd()
    storage.store("a.jpg")

    class Killed(BaseException):
        pass

    def die(_: str) -> None:
        raise Killed

    storage.failing = die
    setting.send(bare("a.jpg"))
    with pytest.raises(Killed):
        setting.bridge("dead", storage=storage).step()
    assert setting.waiting() == 1
    storage.failing = lambda _: None
    setting.bridge("heir", storage=storage).step(wait_s=0)
    assert setting.states() == {"a.jpg": "pending"}
    assert setting.waiting() == 0


def test_a_full_redis_is_emptied_of_uploads_to_complete_too(setting: Setting) -> None:
    """Setting aside takes no memory that removing does not give."""
    storage = Odd()
    storage.store(*(f"{n}.jpg" for n in range(20)))
    setting.send(*(bare(f"{n}.jpg") for n in range(20)))
    setting.redis.config_set("maxmemory-policy", "noeviction")
    setting.redis.config_set("maxmemory", "1")
    try:
        bridge = setting.bridge(storage=storage)
        for _ in range(3):
            bridge.step()
    finally:
        setting.redis.config_set("maxmemory", "0")
    assert len(setting.states()) == 20
    assert (setting.left(), setting.waiting()) == (0, 0)


def test_a_living_bridge_takes_over_from_a_dead_one(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks again and again, not only when it starts; both waits together are a minute."""
    assert bridges.ALIVE_S + bridges.TAKE_OVER_S + bridges.WAIT_S < 60
    bridge = setting.bridge("living")
    bridge.step(wait_s=0)
    setting.redis.rpush(f"{setting.ingest}:processing:dead", json.dumps(records_of("a.jpg")))
    bridge.step(wait_s=0)
    assert setting.states() == {}
    later = time.monotonic() + bridges.TAKE_OVER_S
    monkeypatch.setattr("worker.ingest.bridge.time.monotonic", lambda: later)
    bridge.step(wait_s=0)
    assert setting.states() == {"a.jpg": "pending"}


def records_of(*keys: str) -> dict[str, Any]:
    """Return an entry before it is written."""
    return {"Records": [event(key) for key in keys]}
