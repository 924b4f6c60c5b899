"""Retention and erasure of originals and evidence.

Nothing is removed unless a time is set. A legal hold stops both. Every step of an erasure is
recorded before the next one, so that a run that was cut short is finished by the next run; objects
go first, because without the row nobody would know any more where they were.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import structlog
from sqlalchemy import exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from detection.errors import PermanentError
from worker.ledger.interface import UnknownImage
from worker.ledger.tables import Image, VerdictRow
from worker.ledger.tables_moderation import Erasure, LegalHold
from worker.scoring.evidence import evidence_key
from worker.storage.interface import parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement, Connection, Engine

    from worker.settings import Retention
    from worker.storage.interface import Storage

_log = structlog.get_logger(__name__)
_NOW = func.clock_timestamp()


class UnderHold(PermanentError):
    """A legal hold stands on this image: nothing of it may be deleted until it is lifted."""

    reason: ClassVar[str] = "legal_hold"


class Shards(Protocol):
    """The training datasets that may hold a copy of an image."""

    def erase(self, image_id: UUID) -> bool:
        """Rewrite the shards that hold the image, with a tombstone; return whether none is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What one run removed."""

    originals: int
    evidence: int
    erased: int


def request_erasure(engine: Engine, image_id: UUID, *, reason: str) -> None:
    """Ask for an image to be deleted everywhere; a second request is none.

    Raises `UnknownImage` and `UnderHold`.
    """
    with engine.begin() as connection:
        if not connection.scalar(select(exists().where(Image.id == image_id))):
            raise UnknownImage(f"no image {image_id}")
        if connection.scalar(select(exists().where(LegalHold.image_id == image_id, _standing()))):
            raise UnderHold(f"image {image_id} is under a legal hold; lift it first")
        connection.execute(
            insert(Erasure).values(image_id=image_id, reason=reason).on_conflict_do_nothing()
        )


class RetentionJob:
    """Removes what may not be kept any longer.

    From `evidence_bucket` an erasure also takes the picture of a worker that died before it could
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

    def run(self, *, limit: int = 1000) -> Removed:
        """Finish erasures first, then remove what is too old; at most `limit` of each."""
        return Removed(
            erased=sum(self._erase(row.image_id) for row in self._requested(limit)),
            evidence=self._expire_evidence(limit),
            originals=self._expire_originals(limit),
        )

    # Erasure on request -----------------------------------------------------------------------

    def _requested(self, limit: int) -> Sequence[Any]:
        unfinished: ColumnElement[bool] = Erasure.rows_done_at.is_(None)
        if self._shards is not None:
            unfinished |= Erasure.shards_done_at.is_(None)
        with self._engine.connect() as connection:
            return connection.execute(
                select(Erasure.image_id)
                .where(unfinished, ~_held(Erasure.image_id))
                .order_by(Erasure.requested_at)
                .limit(limit)
            ).all()

    def _erase(self, image_id: UUID) -> bool:
        with self._engine.connect() as connection:
            image = connection.execute(
                select(
                    Image.bucket,
                    Image.key,
                    Image.object_removed_at,
                    Erasure.objects_done_at,
                    Erasure.rows_done_at,
                    Erasure.shards_done_at,
                )
                .join(Erasure, Erasure.image_id == Image.id)
                .where(Image.id == image_id)
            ).one()
            verdicts = connection.execute(
                select(VerdictRow.model_version, VerdictRow.evidence_uri).where(
                    VerdictRow.image_id == image_id
                )
            ).all()
        if image.objects_done_at is None:
            with self._unheld(image_id) as free:
                if free is None:
                    return False
                for verdict in verdicts:
                    if verdict.evidence_uri is not None:
                        self._delete_uri(verdict.evidence_uri)
                    if self._evidence_bucket is not None:
                        key = evidence_key(image_id, verdict.model_version)
                        self._storage.delete(self._evidence_bucket, key)
                self._storage.delete(image.bucket, image.key)
                self._stamp(image_id, objects_done_at=_NOW)
        shards = None if image.shards_done_at else self._shards
        if shards is not None and shards.erase(image_id):
            self._stamp(image_id, shards_done_at=_NOW)
        if image.rows_done_at is None:
            with self._engine.begin() as connection:
                connection.execute(text("SELECT app.erase_rows(:image)"), {"image": image_id})
            _log.info("image_erased", image_id=str(image_id))
        return True

    def _stamp(self, image_id: UUID, **done: object) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(Erasure).where(Erasure.image_id == image_id).values(**done))

    # Age --------------------------------------------------------------------------------------

    def _expire_evidence(self, limit: int) -> int:
        if self._settings.evidence_days is None:
            return 0
        age = timedelta(days=self._settings.evidence_days)
        with self._engine.connect() as connection:
            old = connection.execute(
                select(VerdictRow.id, VerdictRow.image_id, VerdictRow.evidence_uri)
                .where(
                    VerdictRow.evidence_uri.is_not(None),
                    VerdictRow.scored_at < _NOW - age,
                    ~_held(VerdictRow.image_id),
                )
                .limit(limit)
            ).all()
        removed = 0
        for verdict in old:
            with self._unheld(verdict.image_id) as free:
                if free is None:
                    continue
                self._delete_uri(verdict.evidence_uri)
                free.execute(
                    update(VerdictRow).where(VerdictRow.id == verdict.id).values(evidence_uri=None)
                )
                removed += 1
        return removed

    def _expire_originals(self, limit: int) -> int:
        if self._settings.originals_days is None:
            return 0
        age = timedelta(days=self._settings.originals_days)
        with self._engine.connect() as connection:
            old = connection.execute(
                select(Image.id, Image.bucket, Image.key)
                .where(
                    Image.state != "pending",
                    Image.object_removed_at.is_(None),
                    Image.erased_at.is_(None),
                    Image.created_at < _NOW - age,
                    ~_held(Image.id),
                )
                .order_by(Image.created_at)
                .limit(limit)
            ).all()
        removed = 0
        for image in old:
            with self._unheld(image.id) as free:
                if free is None:
                    continue
                self._storage.delete(image.bucket, image.key)
                free.execute(
                    update(Image).where(Image.id == image.id).values(object_removed_at=_NOW)
                )
                removed += 1
        return removed

    @contextmanager
    def _unheld(self, image_id: UUID) -> Iterator[Connection | None]:
        """Yield a transaction in which nobody can place a hold on an image; None if one stands."""
        with self._engine.begin() as connection:
            # Placing one locks the row as well: it is seen here, or waits and sees what is gone.
            connection.execute(
                select(Image.id).where(Image.id == image_id).with_for_update(key_share=True)
            )
            held = connection.scalar(select(_held(image_id)))
            yield None if held else connection

    def _delete_uri(self, uri: str) -> None:
        self._storage.delete(*parse_uri(uri))


def _standing() -> ColumnElement[bool]:
    return LegalHold.lifted_at.is_(None)


def _held(image_id: Any) -> ColumnElement[bool]:
    return exists().where(LegalHold.image_id == image_id, _standing())
