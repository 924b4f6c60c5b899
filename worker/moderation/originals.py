"""Which stored versions are an image's original, and removing them.

A key may hold a successor, a bucket may keep every version, and two rows may stand for one object
(`app.rows_of_object` says which). So what is removed is found in the store's own list of versions:

* the version that a row names, and older ones of the same bytes that no other row names: those are
  what the row stood for before it learnt its version;
* for a row without a version, every version of its etag that no other row names.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as UUID_TYPE

from worker.database.engine import transaction
from worker.storage.etags import is_same, stand_in, tells_apart
from worker.storage.interface import NULL_VERSION, ObjectKept, ObjectReplaced, remove

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import timedelta
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from worker.storage.interface import ObjectFacts, Storage

#: How often a removal starts anew because somebody stored something under the key meanwhile.
_TRIES = 3

#: Rows stay locked while a store answers, which may take longer than a statement may.
_PATIENCE = text("SET LOCAL idle_in_transaction_session_timeout = '10min'")

_LOCK = text("""
    SELECT FROM app.images WHERE id IN (
        SELECT r.id FROM unnest(:images) x (image), app.rows_of_object(x.image) r
    ) ORDER BY id FOR NO KEY UPDATE
""").bindparams(bindparam("images", type_=ARRAY(UUID_TYPE())))

_READ = text("""
    SELECT x.image, o.id, o.bucket, o.key, o.version_id, o.etag, o.state = 'withdrawn' AS withdrawn,
        r.id IS NOT NULL AS same, app.is_held(x.image) AS held,
        o.state <> 'pending' AND coalesce(
            greatest(o.created_at, o.restored_at) + CAST(:age AS interval) < clock_timestamp(),
            false
        ) AS due
    FROM unnest(:images) x (image)
    JOIN app.images i ON i.id = x.image
    JOIN app.images o ON o.bucket = i.bucket AND o.key = i.key
    LEFT JOIN app.rows_of_object(x.image) r ON r.id = o.id
    ORDER BY x.image
""").bindparams(bindparam("images", type_=ARRAY(UUID_TYPE())))


@dataclass(slots=True, kw_only=True)
class Original:
    """One stored object and the rows that stand for it.

    `held` says that a legal hold stands on one of them; `due` that all of them have ended and are
    older than the age asked for. `versions` and `etags` name the object; what `claimed` names
    belongs to other rows of the key.
    """

    bucket: str
    key: str
    held: bool
    due: bool = True
    image_ids: list[UUID] = field(default_factory=list)
    versions: set[str | None] = field(default_factory=set)
    etags: set[str] = field(default_factory=set)
    claimed: set[str] = field(default_factory=set)
    #: Etags of other rows without a version that live: of a withdrawn row they claim everything.
    claimed_etags: set[str] = field(default_factory=set)
    #: Whether the key had other uploads.
    alone: bool = True

    def find(self, stored: Iterable[ObjectFacts]) -> list[ObjectFacts]:
        """Choose what is this object's among the versions of the key, the newest first.

        What storage says nothing to compare of is this object's while the key had no other upload;
        raises `ObjectKept` otherwise.
        """
        found = []
        reached = None in self.versions
        for facts in stored:
            version = None if facts.version_id == NULL_VERSION else facts.version_id
            named = version is not None and version in self.versions
            reached = reached or named
            unclaimed = reached and version not in self.claimed
            if named or (unclaimed and self._has_bytes_of(facts)):
                found.append(facts)
        return found

    def _has_bytes_of(self, facts: ObjectFacts) -> bool:
        etags = self.etags - self.claimed_etags
        told = (facts.etag, stand_in(facts.modified_at, facts.size))
        pairs = [(e, tag) for e in etags for tag in told if tag and tells_apart(e, tag)]
        if pairs or not etags:
            return any(is_same(etag, tag) for etag, tag in pairs)
        if not self.alone:
            message = "storage says nothing that tells it from other uploads of its key"
            raise ObjectKept(f"{self.bucket}/{self.key} is to be removed by hand: {message}")
        return True

    def clear(self, storage: Storage) -> None:
        """Remove all of it; raises `ObjectKept` when some is left, and what storage raises."""
        for _ in range(_TRIES):
            found = self.find(storage.versions_of(self.bucket, self.key))
            if not found:
                return
            # A bucket with versions still has what was replaced: look again.
            with suppress(ObjectReplaced):
                remove(storage, found)
        if self.find(storage.versions_of(self.bucket, self.key)):
            raise ObjectKept(f"{self.bucket}/{self.key} is still there after its removal")


@contextmanager
def locked_originals(
    engine: Engine, image_ids: Sequence[UUID], *, age: timedelta | None = None
) -> Iterator[tuple[Connection, list[Original]]]:
    """Yield a transaction in which nobody can place a hold on these images, and their originals.

    Images of one object are one original. `age` is what `due` is about.
    """
    with transaction(engine) as connection:
        connection.execute(_PATIENCE)
        # Placing a hold locks the row as well: it is seen here, or waits and sees what is gone.
        connection.execute(_LOCK, {"images": list(image_ids)})
        yield connection, _read(connection, image_ids, age)


def _read(
    connection: Connection, image_ids: Sequence[UUID], age: timedelta | None
) -> list[Original]:
    originals: dict[UUID, Original] = {}
    rows = connection.execute(_READ, {"images": list(image_ids), "age": age})
    for row in rows:
        known = originals.setdefault(
            row.image, Original(bucket=row.bucket, key=row.key, held=row.held)
        )
        (_own if row.same else _others)(known, row)
    for original in originals.values():
        original.claimed -= {version for version in original.versions if version is not None}
    distinct: dict[UUID, Original] = {}
    for original in originals.values():
        if not any(image_id in distinct for image_id in original.image_ids):
            distinct |= dict.fromkeys(original.image_ids, original)
    return [*{id(original): original for original in distinct.values()}.values()]


def _own(original: Original, row: Any) -> None:
    original.image_ids.append(row.id)
    original.versions.add(row.version_id)
    original.due &= row.due
    if row.etag is not None:
        original.etags.add(row.etag)


def _others(original: Original, row: Any) -> None:
    original.alone = False
    if row.version_id is not None:
        original.claimed.add(row.version_id)
    elif row.etag is not None and not row.withdrawn:
        original.claimed_etags.add(row.etag)
