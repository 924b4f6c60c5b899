"""Snapshots: which images a run took, where the data set made of them lies, and its digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import func, insert, select, update

from detection.score import Label
from training.data.selection import LabelSource, Split
from worker.database.engine import transaction
from worker.ledger.tables import Decision, Image, RegressionItem
from worker.ledger.tables_training import DatasetSnapshot, SnapshotItem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine, Row

    from training.data.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """One image of a snapshot with the address of its bytes."""

    image_id: UUID
    bucket: str
    key: str
    version_id: str | None
    etag: str | None
    sha256: str
    source: str
    label: str
    group: str
    split: str
    weight: float = 1.0
    audited: bool = False


_STORED = (
    Image.id,
    Image.bucket,
    Image.key,
    Image.version_id,
    Image.etag,
    Image.sha256,
    Image.source,
)


def _item(
    row: Row[*tuple[Any, ...]], split: str, weight: float = 1.0, *, audited: bool = False
) -> StoredItem:
    return StoredItem(
        image_id=row.id,
        bucket=row.bucket,
        key=row.key,
        version_id=row.version_id,
        etag=row.etag,
        sha256=row.sha256,
        source=row.source,
        label=row.label,
        group=row.group_key,
        split=split,
        weight=weight,
        audited=audited,
    )


def _audited(row: Row[*tuple[Any, ...]]) -> bool:
    """Whether a photograph calibrates because the audit drew it: decisions let in no other."""
    return (row.side, row.label, row.why) == (Split.CALIBRATION, Label.REAL, LabelSource.DECISION)


class Snapshots:
    """The tables of snapshots; raises `LedgerUnavailable`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, uri: str) -> int | None:
        """Return the snapshot that was taken for a place, if one was."""
        with transaction(self._engine) as connection:
            return connection.scalar(select(DatasetSnapshot.id).where(DatasetSnapshot.uri == uri))

    def save(self, selection: Selection, *, uri: str) -> int:
        """Keep a selection and return its snapshot; all of it is there or nothing."""
        with transaction(self._engine) as connection:
            newest = connection.scalar(select(func.coalesce(func.max(Decision.id), 0)))
            snapshot_id = connection.execute(
                insert(DatasetSnapshot)
                .values(uri=uri, left_out=dict(selection.left_out), decisions_up_to=newest)
                .returning(DatasetSnapshot.id)
            ).scalar_one()
            connection.execute(
                insert(SnapshotItem),
                [
                    {
                        "snapshot_id": snapshot_id,
                        "image_id": UUID(item.image_id),
                        "label": item.label.value,
                        "why": item.why.value,
                        "group_key": item.group,
                        "side": item.split.value,
                        "weight": item.weight,
                    }
                    for item in selection.items
                ],
            )
        return snapshot_id

    def items(self, snapshot_id: int) -> list[StoredItem]:
        """Return the images of a snapshot that have not been withdrawn since."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(
                    *_STORED,
                    SnapshotItem.label,
                    SnapshotItem.group_key,
                    SnapshotItem.side,
                    SnapshotItem.weight,
                    SnapshotItem.why,
                )
                .join(SnapshotItem, SnapshotItem.image_id == Image.id)
                .where(SnapshotItem.snapshot_id == snapshot_id, Image.state == "scored")
                .order_by(Image.id)
            ).all()
        return [_item(row, row.side, row.weight, audited=_audited(row)) for row in rows]

    def pinned(self) -> list[StoredItem]:
        """Return the images of pinned reports; they stay on the evaluation side."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(*_STORED, RegressionItem.label, RegressionItem.group_key)
                .join(RegressionItem, RegressionItem.image_id == Image.id)
                .where(RegressionItem.pinned, Image.state == "scored", Image.sha256.is_not(None))
                .order_by(Image.id)
            ).all()
        return [_item(row, Split.EVALUATION) for row in rows]

    def sealed(self, first: int | None) -> list[tuple[str, str]]:
        """Return digest and place of every sealed data set: one snapshot's, then newest first."""
        snapshot = DatasetSnapshot
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(snapshot.digest, snapshot.uri)
                .where(snapshot.digest.is_not(None))
                .order_by((snapshot.id == first).desc(), snapshot.id.desc())
            ).all()
        return [(row.digest, row.uri) for row in rows]

    def seal(self, snapshot_id: int, *, digest: str, report: Mapping[str, Any]) -> None:
        """Record the data set that was made and audited; a sealed snapshot stays as it is."""
        with transaction(self._engine) as connection:
            connection.execute(
                update(DatasetSnapshot)
                .where(DatasetSnapshot.id == snapshot_id, DatasetSnapshot.digest.is_(None))
                .values(digest=digest, report=dict(report), sealed_at=func.clock_timestamp())
            )

    def holding(self, image_id: UUID) -> list[str]:
        """Return where the data sets lie that an image was taken into."""
        with transaction(self._engine) as connection:
            return list(
                connection.scalars(
                    select(DatasetSnapshot.uri)
                    .join(SnapshotItem, SnapshotItem.snapshot_id == DatasetSnapshot.id)
                    .where(SnapshotItem.image_id == image_id)
                )
            )
