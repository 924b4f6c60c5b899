"""Tables of schema `app` that count by day, and how far pruning is.

worker/moderation/sql/counts.sql keeps the counts up.

Rows add up: what a day and source come to is the sum of their rows, some of which may be negative.
`loose` ones wait to be merged by beat.
"""

from __future__ import annotations

import datetime as dt
from datetime import datetime

from sqlalchemy import Date, Double, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from worker.database.table_base import Base, now, serial


def _loose() -> Mapped[bool]:
    return mapped_column(server_default=text("true"))


def _count() -> Mapped[int]:
    return mapped_column(server_default=text("0"))


class VerdictCount(Base):
    """How many verdicts of a champion there are of one kind, by the day (UTC) of the verdict.

    `decision`, `overturns` and `audited` say how the image was decided last, whenever that was.
    """

    __tablename__ = "verdict_counts"
    __table_args__ = (
        Index("ix_verdict_counts_day", "day"),
        Index("ix_verdict_counts_loose", "day", postgresql_where=text("loose")),
    )

    id: Mapped[int] = serial()
    day: Mapped[dt.date] = mapped_column(Date)
    source: Mapped[str]
    model_version: Mapped[str]
    policy_id: Mapped[int | None]
    tier: Mapped[str | None]
    label: Mapped[str]
    held: Mapped[bool]
    decision: Mapped[str | None]
    overturns: Mapped[bool]
    audited: Mapped[bool]
    n: Mapped[int]
    loose: Mapped[bool] = _loose()


class SourceCount(Base):
    """What came and what people did, by day (UTC) and source; failures by the day of the upload."""

    __tablename__ = "source_counts"
    __table_args__ = (
        Index("ix_source_counts_day", "day"),
        Index("ix_source_counts_loose", "day", postgresql_where=text("loose")),
    )

    id: Mapped[int] = serial()
    day: Mapped[dt.date] = mapped_column(Date)
    source: Mapped[str]
    uploads: Mapped[int] = _count()
    failed: Mapped[int] = _count()
    decisions: Mapped[int] = _count()
    overturns: Mapped[int] = _count()
    appeals: Mapped[int] = _count()
    loose: Mapped[bool] = _loose()


class FlagCount(Base):
    """How many verdicts of a moment flagged, held back ones included: what the breaker looks at."""

    __tablename__ = "flag_counts"
    __table_args__ = (Index("ix_flag_counts_at", "at"),)

    id: Mapped[int] = serial()
    at: Mapped[datetime]
    source: Mapped[str]
    images: Mapped[int]
    flagged: Mapped[int]


class DecisionMedian(Base):
    """The median time from claim to decision of a day (UTC) that is over, in seconds."""

    __tablename__ = "decision_medians"

    day: Mapped[dt.date] = mapped_column(Date, primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float | None] = mapped_column(Double)


class PruneCursor(Base):
    """Up to which row of one kind pruning has looked, and since when it does from the front."""

    __tablename__ = "prune_cursors"

    kind: Mapped[str] = mapped_column(primary_key=True)
    after_id: Mapped[int] = _count()
    began_at: Mapped[datetime] = now()
