"""Comparing a bucket with the ledger: what notifications lost is added."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from worker.ingest.events import EventError, Ignored, own_event, parse
from worker.ledger.interface import Removal, Upload
from worker.storage.interface import AccessDenied

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from worker.ledger.interface import Ledger
    from worker.queue.publisher import Publisher
    from worker.storage.interface import ObjectFacts, Storage

BATCH = 256


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many objects a listing held and what became of them.

    `ignored` counts by reason, the same as of events: no images by their names, or refused.
    """

    listed: int = 0
    added: int = 0
    known: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)
    published: int = 0


def reconcile(
    bucket: str, *, since: datetime, storage: Storage, ledger: Ledger, publisher: Publisher
) -> Reconciled:
    """Register and publish every image stored in the bucket since then that the ledger lacks.

    Rows that are there but were never published get their message, too. Repeating it changes
    nothing.
    """
    counts, ignored = Reconciled(), Counter[str]()
    batch: list[Upload] = []
    for facts in _current(bucket, storage):
        if facts.modified_at is not None and facts.modified_at < since:
            continue
        upload = _upload(facts)
        counts = replace(counts, listed=counts.listed + 1)
        if isinstance(upload, Ignored):
            ignored[upload.reason] += 1
            continue
        batch.append(upload)
        if len(batch) == BATCH:
            counts = _add(batch, counts, ledger, publisher)
            batch = []
    return replace(_add(batch, counts, ledger, publisher), ignored=dict(ignored))


def _current(bucket: str, storage: Storage) -> Iterator[ObjectFacts]:
    """List the current objects, with their versions where this worker may list those."""
    try:
        yield from (facts for facts in storage.versions(bucket) if facts.latest)
    except AccessDenied:
        yield from storage.list(bucket)


def _upload(facts: ObjectFacts) -> Upload | Ignored:
    """Read a listed object as if its event had arrived."""
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
    except EventError as error:
        return Ignored(reason=error.reason)
    if isinstance(event, Removal):
        raise AssertionError("our own shape has no removals")  # noqa: TRY004 - not the caller's fault
    return event


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
