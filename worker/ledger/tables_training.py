"""Tables of schema `app` that retraining adds: where every model's training images came from."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    SmallInteger,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from worker.database.table_base import Base, empty, now, serial
from worker.ledger import tables_moderation  # noqa: F401 - the metadata must know its tables too


class DatasetSnapshot(Base):
    """The images of one run and, once they are aligned, the data set made of them."""

    __tablename__ = "dataset_snapshots"
    __table_args__ = (
        Index("uq_dataset_snapshots_digest", "digest", unique=True),
        CheckConstraint("(digest IS NULL) = (sealed_at IS NULL)", name="sealed"),
    )

    id: Mapped[int] = serial()
    uri: Mapped[str]
    left_out: Mapped[dict[str, Any]] = empty()
    #: The newest decision that was looked at.
    decisions_up_to: Mapped[int]
    created_at: Mapped[datetime] = now()
    digest: Mapped[str | None]
    report: Mapped[dict[str, Any] | None]
    sealed_at: Mapped[datetime | None]


class SnapshotItem(Base):
    """One image of a snapshot: what it was taken for, and on whose word."""

    __tablename__ = "snapshot_items"
    __table_args__ = (
        CheckConstraint("label IN ('real', 'generated')", name="label"),
        CheckConstraint("why IN ('decision', 'trusted_source')", name="why"),
        CheckConstraint("side IN ('training', 'calibration', 'evaluation')", name="side"),
        CheckConstraint("weight > 0", name="weight"),
        Index("ix_snapshot_items_image_id", "image_id"),
    )

    snapshot_id: Mapped[int] = mapped_column(
        ForeignKey("app.dataset_snapshots.id"), primary_key=True
    )
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"), primary_key=True)
    label: Mapped[str]
    why: Mapped[str]
    group_key: Mapped[str]
    side: Mapped[str]
    weight: Mapped[float] = mapped_column(Double)


class TrainingRun(Base):
    """One run of the loop: at most one a slot, and at most one at a time in the whole fleet.

    `stages` holds what each finished stage left; `deaths` counts leases that ran out without a
    word.
    """

    __tablename__ = "training_runs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('running', 'finished', 'empty', 'failed', 'refused')", name="state"
        ),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended"),
        CheckConstraint("(state IN ('running', 'finished')) = (reason IS NULL)", name="reason"),
        Index("uq_training_runs_slot", "slot", unique=True),
        Index(
            "uq_training_runs_running",
            "state",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
    )

    id: Mapped[int] = serial()
    slot: Mapped[str]
    trigger: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'running'"))
    reason: Mapped[str | None]
    stages: Mapped[dict[str, Any]] = empty()
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("app.dataset_snapshots.id"))
    holder: Mapped[str | None]
    lease_until: Mapped[datetime]
    deaths: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    started_at: Mapped[datetime] = now()
    ended_at: Mapped[datetime | None]


class DriftReading(Base):
    """How far a source's verdicts of one model version moved; append-only by grant.

    `psi` and `ks` are NULL while there are too few verdicts to compare; shares are of 1.
    """

    __tablename__ = "drift_readings"
    __table_args__ = (
        CheckConstraint("(psi IS NULL) = (ks IS NULL)", name="compared"),
        Index("ix_drift_readings_source", "source", "id"),
    )

    id: Mapped[int] = serial()
    at: Mapped[datetime] = now()
    model_version: Mapped[str]
    source: Mapped[str]
    images: Mapped[int]
    reference_images: Mapped[int]
    psi: Mapped[float | None] = mapped_column(Double)
    ks: Mapped[float | None] = mapped_column(Double)
    unsure: Mapped[float] = mapped_column(Double)
    reference_unsure: Mapped[float | None] = mapped_column(Double)
    decisions: Mapped[int]
    overturned: Mapped[int]
    drifted: Mapped[bool]
