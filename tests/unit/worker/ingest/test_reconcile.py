"""Reconciling adds what notifications lost, and only that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from worker.ingest.reconcile import Reconciled, reconcile
from worker.ledger.interface import State, Upload
from worker.ledger.memory import MemoryLedger
from worker.queue.publisher import MemoryPublisher
from worker.storage.memory import MemoryStorage

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
