"""Comparing a bucket with the ledger: what notifications lost is added."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.ingest.events import EventError, own_event, parse
from worker.ledger.interface import Upload

if TYPE_CHECKING:
    from datetime import datetime

    from worker.ledger.interface import Ledger
    from worker.queue.publisher import Publisher
    from worker.storage.interface import ObjectFacts, Storage

BATCH = 256


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many objects a listing held and what became of them."""

    listed: int = 0
    added: int = 0
    known: int = 0
    ignored: int = 0
    published: int = 0


def reconcile(
    bucket: str, *, since: datetime, storage: Storage, ledger: Ledger, publisher: Publisher
) -> Reconciled:
    """Register and publish every image stored in the bucket since then that the ledger lacks.

    Rows that are there but were never published get their message, too. Objects that are no images
    or whose names the service refuses are counted as ignored. Repeating it changes nothing.
    """
    counts = Reconciled()
    batch: list[Upload] = []
    for facts in storage.list(bucket):
        if facts.modified_at is not None and facts.modified_at < since:
            continue
        upload = _upload(facts)
        counts = replace(counts, listed=counts.listed + 1)
        if upload is None:
            counts = replace(counts, ignored=counts.ignored + 1)
            continue
        batch.append(upload)
        if len(batch) == BATCH:
            counts = _add(batch, counts, ledger, publisher)
            batch = []
    return _add(batch, counts, ledger, publisher)


def _upload(facts: ObjectFacts) -> Upload | None:
    """Read a listed object as if its event had arrived; None for what an event would not pass."""
    found = Upload(
        bucket=facts.bucket,
        key=facts.key,
        version_id=facts.version_id,
        etag=facts.etag,
        size=facts.size,
        content_type=facts.content_type,
        uploaded_at=facts.modified_at,
    )
    try:
        (event,) = parse(own_event(found), buckets=(facts.bucket,))
    except EventError:
        return None
    return event if isinstance(event, Upload) else None


def _add(
    batch: list[Upload], counts: Reconciled, ledger: Ledger, publisher: Publisher
) -> Reconciled:
    answers = ledger.register(batch)
    added = sum(answer.created for answer in answers)
    unpublished = [answer for answer in answers if answer.unpublished]
    return replace(
        counts,
        added=counts.added + added,
        known=counts.known + len(answers) - added,
        published=counts.published + publisher.publish(unpublished),
    )
