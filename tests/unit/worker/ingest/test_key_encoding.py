"""Which key an event means is asked of the store, and only where the event leaves it open."""

from __future__ import annotations

import hashlib

import pytest

from worker.ingest.key_encoding import settle
from worker.ledger.interface import Removal, Upload
from worker.storage.interface import ObjectFacts, StorageUnavailable
from worker.storage.memory import MemoryStorage

DECODED, RAW = "a b.jpg", "a+b.jpg"


class CountingStorage(MemoryStorage):
    """Object storage that counts its HEADs, and fails them while `away`."""

    heads = 0
    away = False

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectFacts:
        """Ask for an object's facts."""
        self.heads += 1
        if self.away:
            raise StorageUnavailable
        return super().head(bucket, key, version_id=version_id)


def etag(body: bytes) -> str:
    """Return the tag of a body, as the in-memory store makes it."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def store(**bodies: bytes) -> CountingStorage:
    """Return a store with bodies under the decoded or the raw key."""
    storage = CountingStorage(["uploads"])
    for name, body in bodies.items():
        key = {"decoded": DECODED, "raw": RAW}[name]
        storage.put("uploads", key, body, content_type="image/jpeg")
    return storage


def upload(tag: str | None = None) -> Upload:
    """Return an upload whose key may be either."""
    return Upload(bucket="uploads", key=DECODED, raw_key=RAW, etag=tag)


@pytest.mark.parametrize("tag", [None, etag(b"1")])
@pytest.mark.parametrize(
    ("storage", "key"),
    [
        (store(decoded=b"1"), DECODED),
        (store(raw=b"1"), RAW),
        # Neither is there: S3's own rule holds, and the worker finds the object missing.
        (store(), DECODED),
    ],
)
def test_an_upload_is_the_object_that_is_there(
    storage: CountingStorage, key: str, tag: str | None
) -> None:
    """The decoded key first, then the key as it was written."""
    (settled,) = settle(upload(tag), storage)
    assert isinstance(settled, Upload)
    assert (settled.key, settled.raw_key, settled.etag) == (key, None, tag)


def test_of_two_objects_the_one_with_the_tag_of_the_event_is_meant() -> None:
    """Both keys may be there: then the entity tag tells them apart."""
    storage = store(decoded=b"1", raw=b"2")
    for body, key in ((b"1", DECODED), (b"2", RAW), (b"3", DECODED)):
        (settled,) = settle(upload(etag(body)), storage)
        assert settled.key == key


def test_an_unreadable_key_is_not_the_one() -> None:
    """A key that may not be read says no more than one that is not there."""
    storage = store(decoded=b"1", raw=b"1")
    storage.denied.add(DECODED)
    assert [event.key for event in settle(upload(), storage)] == [RAW]


@pytest.mark.parametrize(
    ("storage", "keys"),
    [
        # Gone both: whichever had a row loses it.
        (store(), [DECODED, RAW]),
        (store(decoded=b"1"), [RAW]),
        (store(raw=b"1"), [DECODED]),
        # Stored again meanwhile: order is the sequencer's business.
        (store(decoded=b"1", raw=b"1"), [DECODED]),
    ],
)
def test_a_removal_takes_what_is_gone(storage: CountingStorage, keys: list[str]) -> None:
    """An object that is still there under the other key keeps its row."""
    event = Removal(bucket="uploads", key=DECODED, raw_key=RAW, sequencer="0A")
    settled = settle(event, storage)
    assert [one.key for one in settled] == keys
    assert {one.sequencer for one in settled} == {"0A"}


def test_clear_keys_ask_nothing() -> None:
    """Most keys read the same either way; the store is not bothered with them."""
    storage = store()
    for event in (Upload(bucket="uploads", key=RAW), Removal(bucket="uploads", key=RAW)):
        assert settle(event, storage) == [event]
    assert storage.heads == 0


def test_a_store_that_is_away_is_waited_for() -> None:
    """The event is not settled by guesswork."""
    storage = store()
    storage.away = True
    with pytest.raises(StorageUnavailable):
        settle(upload(), storage)
