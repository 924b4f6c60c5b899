"""Reconciling adds what notifications lost, and only that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from worker.ingest.reconcile import Reconciled, reconcile
from worker.ledger.interface import State, Upload
from worker.ledger.memory import MemoryLedger
from worker.queue.publisher import MemoryPublisher
from worker.storage.interface import AccessDenied
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.storage.interface import ObjectFacts

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def test_what_is_missing_is_added_and_published_once() -> None:
    """Known rows, files that are no images, and a second run change nothing."""
    ledger, storage = MemoryLedger(), MemoryStorage(["uploads"])
    publisher = MemoryPublisher(ledger)
    for key in ("a.jpg", "b.jpg", "notes.txt"):
        facts = storage.put("uploads", key, key.encode(), content_type="")
        if key == "b.jpg":
            (known,) = ledger.register([Upload(bucket="uploads", key=key, etag=facts.etag)])
            ledger.mark_published([known.image_id])

    def run() -> Reconciled:
        return reconcile(
            "uploads", since=LONG_AGO, storage=storage, ledger=ledger, publisher=publisher
        )

    assert run() == Reconciled(listed=3, added=1, known=1, ignored={"extension": 1}, published=1)
    assert run() == Reconciled(listed=3, added=0, known=2, ignored={"extension": 1}, published=0)
    assert {image.state for image in ledger.images.values()} == {State.PENDING}


def test_what_is_ignored_is_counted_by_reason() -> None:
    """With the rule of events: names that say nothing are added, and the bytes decide."""
    ledger, storage = MemoryLedger(), MemoryStorage(["uploads"])
    for key in ("2024.01.05", "a.jif", "a.dat", "a", "b.mp4", "c.PDF", "d/", "e\0.jpg", "f.mp4"):
        storage.put("uploads", key, b"x", content_type="text/plain")
    counts = reconcile(
        "uploads",
        since=LONG_AGO,
        storage=storage,
        ledger=ledger,
        publisher=MemoryPublisher(ledger),
    )
    assert counts == Reconciled(
        listed=9,
        added=4,
        ignored={"extension": 3, "folder": 1, "invalid_field": 1},
        published=4,
    )


def test_older_objects_are_left_alone() -> None:
    """Objects stored before the given time are not counted."""
    ledger, storage = MemoryLedger(), MemoryStorage(["uploads"])
    storage.put("uploads", "a.jpg", b"a", content_type="image/jpeg")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    counts = reconcile(
        "uploads",
        since=tomorrow,
        storage=storage,
        ledger=ledger,
        publisher=MemoryPublisher(ledger),
    )
    assert counts == Reconciled()


@pytest.mark.parametrize("told", ["hook", "storage", "both"])
def test_a_bucket_with_versions_doubles_nothing(told: str) -> None:
    """Ten uploads stay ten rows, whoever announced them; one that nobody announced is added.

    Objects that a newer version or a delete marker hides are not current, so nothing is added.
    """
    storage = MemoryStorage(["uploads"], versioned=["uploads"])
    ledger = MemoryLedger()
    for number in range(10):
        key = f"{number}.jpg"
        storage.put("uploads", key, b"an earlier picture", content_type="image/jpeg")
        facts = storage.put("uploads", key, b"%d" % number, content_type="image/jpeg")
        hook = Upload(bucket="uploads", key=key, etag=facts.etag, source="web")
        notification = replace(hook, version_id=facts.version_id, source="default")
        ledger.register(
            {"hook": [hook], "storage": [notification], "both": [hook, notification]}[told]
        )
    storage.put("uploads", "gone.jpg", b"gone", content_type="image/jpeg")
    storage.delete("uploads", "gone.jpg")
    lost = storage.put("uploads", "0.jpg", b"0", content_type="image/jpeg")
    publisher = MemoryPublisher(ledger)

    def run() -> Reconciled:
        return reconcile(
            "uploads", since=LONG_AGO, storage=storage, ledger=ledger, publisher=publisher
        )

    assert run().added == (0 if told == "hook" else 1)
    assert len(ledger.images) == (10 if told == "hook" else 11)
    assert run() == Reconciled(listed=10, known=10)
    assert lost.version_id in {image.upload.version_id for image in ledger.images.values()}


def test_without_the_right_to_list_versions_etags_do() -> None:
    """A listing without versions finds the same rows."""
    storage = MemoryStorage(["uploads"], versioned=["uploads"])
    facts = storage.put("uploads", "a.jpg", b"a", content_type="image/jpeg")
    storage.put("uploads", "b.jpg", b"b", content_type="image/jpeg")
    ledger = MemoryLedger()
    ledger.register(
        [Upload(bucket="uploads", key="a.jpg", etag=facts.etag, version_id=facts.version_id)]
    )

    def refuse(*_: object, **__: object) -> Iterator[ObjectFacts]:
        raise AccessDenied

    storage.versions, versions = refuse, storage.versions  # type: ignore[method-assign]  # a store's answer
    storage.list = lambda bucket: (  # type: ignore[method-assign,assignment]
        replace(one, version_id=None) for one in versions(bucket) if one.latest
    )
    counts = reconcile(
        "uploads",
        since=LONG_AGO,
        storage=storage,
        ledger=ledger,
        publisher=MemoryPublisher(ledger),
    )
    assert (counts.known, counts.added) == (1, 1)
