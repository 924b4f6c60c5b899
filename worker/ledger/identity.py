"""Decides whether two events concern the same upload, and which of them came first.

An upload is one storing of one object. Storage and hooks name it differently: a hook knows the etag
at best, a notification of a bucket with versions also the version id. So one name may be less than
another and mean the same upload:

* Two names with version ids are the same upload when the ids are equal, whatever else they say: a
  version never changes. Two versions are two uploads, also of the same bytes.
* Where one of the names has no version id, equal etags are the same upload. The row learns the
  version id from whichever event has it.
* Of several versions of the same bytes, an event without a version id means the one that no hook
  has spoken for yet, and of those the newest.

So bytes that a hook announces twice are one upload until storage names two versions of them; then
they are two. What a removal took is the same upload only to an event older than the removal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import uuid4

from worker.ledger.interface import Registration, is_stale, sequencer_rank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from worker.ledger.interface import Removal, Upload

#: Bucket and key.
Address = tuple[str, str]

#: The source of an upload that no hook has spoken for.
UNTOLD = "default"


@dataclass(slots=True, kw_only=True)
class KnownUpload:
    """A row of the ledger as far as registration needs it; registration changes it in place.

    `live` is False for withdrawn rows, `pending` True while it has not ended, `published` True once
    a message was sent for it. `hurried` says that this message went to the slower queue, `restored`
    that the same bytes were stored again; `new` and `changed` say what must be stored.
    """

    image_id: UUID
    upload: Upload
    live: bool = True
    pending: bool = True
    published: bool = False
    hurried: bool = False
    restored: bool = False
    new: bool = False
    changed: bool = False


def place(
    uploads: Sequence[Upload],
    rows: Mapping[Address, list[KnownUpload]],
    removals: Mapping[Address, Sequence[Removal]],
) -> list[Registration]:
    """Find or add the row of each upload, in their order, and answer each.

    `rows` are those of the uploads' keys, the oldest first, and what is new is added to them;
    `removals` are those that are known. Only the first of several answers for one row says that it
    is new or unpublished.
    """
    placed = [
        _place(
            upload, rows[upload.bucket, upload.key], removals.get((upload.bucket, upload.key), ())
        )
        for upload in uploads
    ]
    answers, seen = [], set()
    for row in placed:
        first = row.image_id not in seen
        seen.add(row.image_id)
        answers.append(
            Registration(
                image_id=row.image_id,
                created=first and row.new and row.live,
                priority=row.upload.priority,
                unpublished=first and row.pending and (row.hurried or not row.published),
            )
        )
    return answers


def _place(upload: Upload, rows: list[KnownUpload], removals: Sequence[Removal]) -> KnownUpload:
    late = any(is_stale(upload, removal) for removal in removals)
    row = find_same(upload, rows, late=late)
    if row is None:
        row = KnownUpload(
            image_id=uuid4(), upload=upload, live=not late, pending=not late, new=True
        )
        rows.append(row)
    else:
        _merge(row, upload, removals)
    return row


def same_upload(one: Upload, other: Upload) -> bool:
    """Say whether two names mean the same upload of the same bucket and key."""
    if (one.bucket, one.key) != (other.bucket, other.key):
        return False
    if one.version_id is not None and other.version_id is not None:
        return one.version_id == other.version_id
    return one.etag is not None and one.etag == other.etag


def find_same(upload: Upload, rows: Sequence[KnownUpload], *, late: bool) -> KnownUpload | None:
    """Find the row of an upload among those of its key, the oldest first.

    A `late` event, older than a removal, may also mean a withdrawn row.
    """
    same = [row for row in rows if (late or row.live) and same_upload(upload, row.upload)]

    def fitness(row: KnownUpload) -> tuple[bool, bool, bool]:
        told = (row.upload.source, row.upload.uploader)
        return (
            row.upload.version_id == upload.version_id,
            told == (upload.source, upload.uploader),
            told == (UNTOLD, None),
        )

    # The last of equals: max takes the first, so the newest must come first.
    return max(reversed(same), key=fitness, default=None)


def _merge(row: KnownUpload, upload: Upload, removals: Sequence[Removal]) -> None:
    """Let a row learn from another event of its upload.

    What a hook says of source, uploader and priority stands against a notification, which says
    nothing of them, whichever comes first. When the event shows that the row's object was removed
    before, the row is withdrawn.
    """
    if not row.live:
        return
    old = row.upload
    learnt = replace(
        old,
        version_id=old.version_id or upload.version_id,
        etag=old.etag or upload.etag,
        sequencer=max(old.sequencer, upload.sequencer, key=_rank),
        size=upload.size if old.size is None else old.size,
        content_type=old.content_type or upload.content_type,
        sha256=old.sha256 or upload.sha256,
        source=upload.source if old.source == UNTOLD else old.source,
        uploader=old.uploader or upload.uploader,
        priority=old.priority or upload.priority,
        uploaded_at=old.uploaded_at or upload.uploaded_at,
    )
    if learnt != old:
        row.upload, row.changed = learnt, True
        row.restored |= old.sequencer is not None and learnt.sequencer != old.sequencer
        row.hurried |= learnt.priority and not old.priority and row.published
    if any(is_stale(learnt, removal) for removal in removals):
        row.live = row.pending = False
        row.changed = True


def _rank(sequencer: str | None) -> str:
    return sequencer_rank(sequencer or "")
