"""Retention and erasure of originals and evidence.

Nothing is removed unless a time is set. A legal hold stops both. Every step of an erasure is
recorded before the next one, so that a run that was cut short is finished by the next run; objects
go first, because without the row nobody would know any more where they were.

What retention takes up is marked before its object goes (`images.expiring_at`): the store tells of
the removal as of any other, and the marked row keeps its state, verdicts and review. What cannot be
removed is counted, logged and tried again by the next run; it holds nothing else up.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import structlog
from sqlalchemy import QueuePool, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from detection.errors import PermanentError, TransientError
from worker.database.engine import transaction
from worker.ledger.interface import UnknownImage
from worker.ledger.tables import Image, VerdictRow
from worker.ledger.tables_moderation import Erasure
from worker.moderation.originals import locked_originals
from worker.scoring.evidence import remove_evidence, remove_evidence_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy import Engine, Update

    from worker.settings import Retention
    from worker.storage.interface import Storage

_log = structlog.get_logger(__name__)
_NOW = func.clock_timestamp()

_T = TypeVar("_T")

#: The most objects that are removed at once, if there are so many connections to the database:
#: each row is locked in a transaction of its own while its object goes.
CONCURRENCY = 16
#: How many rows are read at a time, and how few are not worth threads.
BATCH = 256
FEW = 8
#: How often a long run says how far it is.
REPORT_EVERY_S = 60.0

# What is due, the oldest first. The conditions are those of the indexes ix_images_kept and
# ix_verdicts_evidence.
_DUE_ORIGINALS = """
    SELECT i.id, i.created_at AS since FROM app.images i
    WHERE i.object_removed_at IS NULL AND i.erased_at IS NULL AND i.state <> 'pending'
        AND i.created_at < clock_timestamp() - CAST(:age AS interval)
        AND (i.restored_at IS NULL
            OR i.restored_at < clock_timestamp() - CAST(:age AS interval))
        AND NOT EXISTS (
            SELECT FROM app.legal_holds h WHERE h.image_id = i.id AND h.lifted_at IS NULL
        )
        AND {after}
    ORDER BY i.created_at, i.id
    LIMIT :batch
"""
_DUE_EVIDENCE = """
    SELECT v.id, v.scored_at AS since, v.image_id, v.evidence_uri FROM app.verdicts v
    WHERE v.evidence_uri IS NOT NULL
        AND v.scored_at < clock_timestamp() - CAST(:age AS interval)
        AND NOT app.is_held(v.image_id)
        AND {after}
    ORDER BY v.scored_at, v.id
    LIMIT :batch
"""
_REQUESTED = """
    SELECT e.image_id AS id, e.requested_at AS since FROM app.erasures e
    WHERE (e.rows_done_at IS NULL OR (CAST(:shards AS boolean) AND e.shards_done_at IS NULL))
        AND NOT app.is_held(e.image_id)
        AND {after}
    ORDER BY e.requested_at, e.image_id
    LIMIT :batch
"""


class UnderHold(PermanentError):
    """A legal hold stands on this image: nothing of it may be deleted until it is lifted."""

    reason: ClassVar[str] = "legal_hold"


class Shards(Protocol):
    """The training datasets that may hold a copy of an image."""

    def erase(self, image_id: UUID) -> bool:
        """Rewrite the shards that hold the image, with a tombstone; return whether none is left."""


@dataclass(slots=True, kw_only=True)
class Removed:
    """What one run removed, and what it could not remove."""

    originals: int = 0
    evidence: int = 0
    erased: int = 0
    failed: int = 0


def request_erasure(engine: Engine, image_id: UUID, *, reason: str) -> None:
    """Ask for an image to be deleted everywhere; a second request is none.

    Raises `UnknownImage` and `UnderHold`.
    """
    with transaction(engine) as connection:
        if not connection.scalar(select(exists().where(Image.id == image_id))):
            raise UnknownImage(f"no image {image_id}")
        if connection.scalar(select(func.app.is_held(image_id))):
            raise UnderHold(f"image {image_id} is under a legal hold; lift it first")
        connection.execute(
            insert(Erasure).values(image_id=image_id, reason=reason).on_conflict_do_nothing()
        )


class RetentionJob:
    """Removes what may not be kept any longer.

    From `evidence_bucket` an erasure also takes the evidence of a worker that died before it could
    note the address.
    """

    def __init__(
        self,
        engine: Engine,
        storage: Storage,
        settings: Retention,
        *,
        shards: Shards | None = None,
        evidence_bucket: str | None = None,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._settings = settings
        self._shards = shards
        self._evidence_bucket = evidence_bucket
        size = engine.pool.size() if isinstance(engine.pool, QueuePool) else 1
        self._concurrency = min(CONCURRENCY, size)
        self._removed = Removed()
        self._reported_at = time.monotonic()

    def run(self) -> Removed:
        """Finish erasures, then remove what is too old, the oldest first, until nothing is left.

        Raises `TransientError` when object storage or the database is away.
        """
        self._removed = Removed()
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="retention") as pool:
            self._erase_requested()
            if self._settings.evidence_days is not None:
                self._expire_evidence(pool, timedelta(days=self._settings.evidence_days))
            if self._settings.originals_days is not None:
                self._expire_originals(pool, timedelta(days=self._settings.originals_days))
        return self._removed

    # Erasure on request -----------------------------------------------------------------------

    def _erase_requested(self) -> None:
        due = _Due(self._engine, _REQUESTED, "e.requested_at, e.image_id")
        while batch := due.next(shards=self._shards is not None):
            # One after the other: each may rewrite the same shards.
            self._removed.erased += self._each(batch, lambda row: self._erase(row.id), map)
            self._report()

    def _erase(self, image_id: UUID) -> bool:
        self._request_for_same_object(image_id)
        with transaction(self._engine) as connection:
            steps = connection.execute(
                select(Erasure.objects_done_at, Erasure.rows_done_at, Erasure.shards_done_at).where(
                    Erasure.image_id == image_id
                )
            ).one()
        if steps.objects_done_at is None and not self._erase_objects(image_id):
            return False
        shards = None if steps.shards_done_at else self._shards
        if shards is not None and shards.erase(image_id):
            with transaction(self._engine) as connection:
                connection.execute(_stamp([image_id], shards_done_at=_NOW))
        if steps.rows_done_at is None:
            with transaction(self._engine) as connection:
                connection.execute(text("SELECT app.erase_rows(:image)"), {"image": image_id})
            _log.info("image_erased", image_id=str(image_id))
        return True

    def _request_for_same_object(self, image_id: UUID) -> None:
        """Erase with an image every row that stands for the same object."""
        with transaction(self._engine) as connection:
            connection.execute(
                text(
                    "INSERT INTO app.erasures (image_id, reason) SELECT o.id, e.reason "
                    "FROM app.erasures e, app.rows_of_object(e.image_id) o "
                    "WHERE e.image_id = :image AND e.objects_done_at IS NULL "
                    "ON CONFLICT DO NOTHING"
                ),
                {"image": image_id},
            )

    def _erase_objects(self, image_id: UUID) -> bool:
        """Remove original and evidence; False while somebody holds them."""
        with locked_originals(self._engine, [image_id]) as (connection, (original,)):
            if original.held:
                return False
            kept = connection.scalars(
                select(VerdictRow.evidence_uri).where(VerdictRow.image_id.in_(original.image_ids))
            )
            for uri in kept:
                if uri is not None:
                    remove_evidence(self._storage, uri)
            if self._evidence_bucket is not None:
                for erased in original.image_ids:
                    remove_evidence_of(self._storage, self._evidence_bucket, erased)
            original.clear(self._storage)
            connection.execute(_stamp(original.image_ids, objects_done_at=_NOW))
        return True

    # Age --------------------------------------------------------------------------------------

    def _expire_evidence(self, pool: ThreadPoolExecutor, age: timedelta) -> None:
        due = _Due(self._engine, _DUE_EVIDENCE, "v.scored_at, v.id")
        while batch := due.next(age=age):
            self._removed.evidence += self._each(batch, self._remove_evidence, pool.map)
            self._report()

    def _remove_evidence(self, verdict: Any) -> bool:
        with locked_originals(self._engine, [verdict.image_id]) as (connection, (original,)):
            if not original.held:
                remove_evidence(self._storage, verdict.evidence_uri)
                connection.execute(
                    update(VerdictRow).where(VerdictRow.id == verdict.id).values(evidence_uri=None)
                )
            return not original.held

    def _expire_originals(self, pool: ThreadPoolExecutor, age: timedelta) -> None:
        due = _Due(self._engine, _DUE_ORIGINALS, "i.created_at, i.id")
        while batch := due.next(age=age):
            marked = self._mark([row.id for row in batch], age)
            self._removed.originals += self._each(
                marked, lambda image_id: self._remove_original(image_id, age), pool.map
            )
            self._report()

    def _mark(self, image_ids: Sequence[UUID], age: timedelta) -> list[UUID]:
        """Say which originals are about to go; return one row of each."""
        with locked_originals(self._engine, image_ids, age=age) as (connection, originals):
            free = [original for original in originals if original.due and not original.held]
            marked = [image_id for original in free for image_id in original.image_ids]
            connection.execute(_change_images(marked, expiring_at=_NOW))
        return [original.image_ids[0] for original in free]

    def _remove_original(self, image_id: UUID, age: timedelta) -> bool:
        with locked_originals(self._engine, [image_id], age=age) as (connection, (original,)):
            free = original.due and not original.held
            if free:
                original.clear(self._storage)
            done = {"object_removed_at": _NOW} if free else {"expiring_at": None}
            connection.execute(_change_images(original.image_ids, **done))
            return free

    def _each(
        self, items: Sequence[_T], remove: Callable[[_T], bool], mapped: Callable[..., Any]
    ) -> int:
        """Count what of a batch was removed; raises `TransientError` if nothing could be."""

        def attempt(item: _T) -> bool | TransientError | PermanentError:
            try:
                return remove(item)
            except (TransientError, PermanentError) as error:
                return error

        removed, failed = 0, 0
        away: TransientError | None = None
        outcomes = map(attempt, items) if len(items) <= FEW else mapped(attempt, items)
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, bool):
                removed += outcome
                continue
            failed += 1
            away = outcome if isinstance(outcome, TransientError) else away
            _log.warning("removal_failed", image_id=_image_of(item), error=str(outcome))
        self._removed.failed += failed
        if away is not None and failed == len(items):
            raise away
        return removed

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported_at > REPORT_EVERY_S:
            self._reported_at = now
            _log.info("retention_progressed", **asdict(self._removed))


class _Due:
    """Reads what is due batch by batch, each row once a run."""

    def __init__(self, engine: Engine, query: str, order: str) -> None:
        self._engine = engine
        self._query, self._order = query, order
        self._after: dict[str, Any] = {}

    def next(self, **values: object) -> Sequence[Any]:
        """Return the next rows, the oldest first; none when all were seen."""
        after = f"({self._order}) > (:since, :id)" if self._after else "true"
        query = text(self._query.format(after=after))
        with transaction(self._engine) as connection:
            rows = connection.execute(query, {**values, **self._after, "batch": BATCH}).all()
        if rows:
            self._after = {"since": rows[-1].since, "id": rows[-1].id}
        return rows


def _stamp(image_ids: Sequence[UUID], **done: object) -> Update:
    return update(Erasure).where(Erasure.image_id.in_(image_ids)).values(**done)


def _change_images(image_ids: Sequence[UUID], **values: object) -> Update:
    return update(Image).where(Image.id.in_(image_ids)).values(**values)


def _image_of(item: Any) -> str:
    """Return the image that an item of a batch is about: an id, or a row that has one."""
    return str(getattr(item, "image_id", None) or getattr(item, "id", item))
