"""Tables of schema `app` that moderation adds; views and functions over them live in SQL files."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from detection.intake.metadata.c2pa_manifest import ManifestState, SignerState
from worker.database.table_base import Base, now, one_of, serial
from worker.ledger import (  # foreign keys point at the first's tables
    tables,  # noqa: F401
    tables_counts,  # noqa: F401 - the metadata must know its tables, too
)

QUEUES = ("flagged", "unsure", "audit", "appeal", "report", "requested")
ACTION_TIERS = ("allow", "review", "flag", "flag_high")


def _by() -> Mapped[str]:
    return mapped_column(server_default=text("SESSION_USER"))


class Moderator(Base):
    """A login that may moderate, and of which sources; without a row a login sees nothing."""

    __tablename__ = "moderators"

    moderator: Mapped[str] = mapped_column(primary_key=True)
    every_source: Mapped[bool] = mapped_column(server_default=text("false"))
    sources: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    lead: Mapped[bool] = mapped_column(server_default=text("false"))
    added_by: Mapped[str] = _by()
    added_at: Mapped[datetime] = now()


class FlaggingBreaker(Base):
    """A stop of automatic flagging for one source, from the alert until a person resumes it."""

    __tablename__ = "breakers"
    __table_args__ = (
        Index(
            "uq_breakers_open", "source", unique=True, postgresql_where=text("closed_at IS NULL")
        ),
        Index("ix_breakers_source", "source", "closed_at"),
    )

    id: Mapped[int] = serial()
    source: Mapped[str]
    policy_id: Mapped[int] = mapped_column(ForeignKey("app.policies.id"))
    images: Mapped[int]
    flag_share: Mapped[float] = mapped_column(Double)
    opened_at: Mapped[datetime] = now()
    closed_at: Mapped[datetime | None]
    closed_by: Mapped[str | None]
    close_reason: Mapped[str | None]


class ReasonCode(Base):
    """Why a decision was made: a code for machines and a sentence a person can be told."""

    __tablename__ = "reason_codes"
    __table_args__ = (
        CheckConstraint("decision IN ('real', 'generated', 'unsure')", name="decision"),
    )

    code: Mapped[str] = mapped_column(primary_key=True)
    decision: Mapped[str]
    words: Mapped[str]


class Review(Base):
    """An image that a person should look at, or has; one row an image.

    `rank_at` orders the queue: the time of queueing, moved earlier for uncertainty and reach, so
    that the order by age and bonus never has to be computed again. `audit_share` is the probability
    with which the image was drawn into the random audit, NULL for images that were not drawn.
    """

    __tablename__ = "reviews"
    __table_args__ = (
        one_of("queue", QUEUES),
        Index("ix_reviews_open", "rank_at", postgresql_where=text("closed_at IS NULL")),
        Index(
            "ix_reviews_open_queue", "queue", "rank_at", postgresql_where=text("closed_at IS NULL")
        ),
        Index(
            "ix_reviews_open_source",
            "source",
            "rank_at",
            postgresql_where=text("closed_at IS NULL"),
        ),
        Index(
            "ix_reviews_open_counts",
            "source",
            "queue",
            "queued_at",
            postgresql_where=text("closed_at IS NULL"),
        ),
        Index("ix_reviews_audited", "source", postgresql_where=text("audit_share IS NOT NULL")),
    )

    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"), primary_key=True)
    source: Mapped[str]
    queue: Mapped[str]
    verdict_id: Mapped[int | None] = mapped_column(ForeignKey("app.verdicts.id"))
    uncertainty: Mapped[float] = mapped_column(Double)
    reach: Mapped[int]
    audit_share: Mapped[float | None] = mapped_column(Double)
    queued_at: Mapped[datetime] = now()
    rank_at: Mapped[datetime]
    claimed_until: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]


class Skip(Base):
    """An image that somebody would rather not look at; the queue gives it to others only."""

    __tablename__ = "skips"

    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"), primary_key=True)
    moderator: Mapped[str] = mapped_column(primary_key=True)
    why: Mapped[str | None]
    created_at: Mapped[datetime] = now()


class Opinion(Base):
    """A second opinion, which binds nobody; append-only, one of a person on an image.

    `blind` says that no function had shown its author the verdict.
    """

    __tablename__ = "opinions"
    __table_args__ = (
        CheckConstraint("decision IN ('real', 'generated', 'unsure')", name="decision"),
        Index("uq_opinions_image_id_moderator", "image_id", "moderator", unique=True),
        Index("ix_opinions_created_at", "created_at"),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    moderator: Mapped[str]
    decision: Mapped[str]
    reason_code: Mapped[str]
    note: Mapped[str | None]
    verdict_id: Mapped[int | None] = mapped_column(ForeignKey("app.verdicts.id"))
    blind: Mapped[bool]
    created_at: Mapped[datetime] = now()


class NearDuplicateKeys(Base):
    """Pieces of a PDQ hash by which near duplicates are found; flat images have none."""

    __tablename__ = "near_duplicate_keys"
    __table_args__ = (Index("ix_near_duplicate_keys_chunks", "chunks", postgresql_using="gin"),)

    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"), primary_key=True)
    chunks: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class Provenance(Base):
    """What the file says about its own origin: claims, beside the score and never part of it."""

    __tablename__ = "provenance"
    __table_args__ = (
        # The last three are words of earlier releases; moderation.c2pa_state translates them.
        one_of("c2pa_state", (*ManifestState, "valid", "invalid", "unreadable")),
        one_of("c2pa_signer_state", SignerState),
    )

    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"), primary_key=True)
    exif_make: Mapped[str | None]
    exif_model: Mapped[str | None]
    exif_software: Mapped[str | None]
    exif_taken_at: Mapped[str | None]
    iptc_digital_source_type: Mapped[str | None]
    iptc_asserts_ai: Mapped[bool]
    c2pa_state: Mapped[str]
    c2pa_claim_generator: Mapped[str | None]
    c2pa_digital_source_types: Mapped[list[str]] = mapped_column(ARRAY(Text))
    c2pa_asserts_ai: Mapped[bool]
    c2pa_problems: Mapped[list[str]] = mapped_column(ARRAY(Text))
    read_at: Mapped[datetime] = now()
    #: These are empty in rows of earlier releases.
    declares_ai: Mapped[bool | None]
    declared_generator: Mapped[str | None]
    declared_where: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    c2pa_signer: Mapped[str | None]
    c2pa_signer_state: Mapped[str | None]
    c2pa_signed_at: Mapped[datetime | None]
    c2pa_ingredients: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)


class LegalHold(Base):
    """An order to keep an image: neither retention nor an erasure touches it until it is lifted."""

    __tablename__ = "legal_holds"
    __table_args__ = (
        Index(
            "uq_legal_holds_standing",
            "image_id",
            unique=True,
            postgresql_where=text("lifted_at IS NULL"),
        ),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    reason: Mapped[str]
    placed_by: Mapped[str] = _by()
    placed_at: Mapped[datetime] = now()
    lifted_by: Mapped[str | None]
    lifted_at: Mapped[datetime | None]


class Erasure(Base):
    """A request to delete an image everywhere, and how far it has come.

    `shards_done_at` is stamped by training when no dataset shard holds the image any more.
    """

    __tablename__ = "erasures"
    __table_args__ = (
        Index("ix_erasures_open", "requested_at", postgresql_where=text("rows_done_at IS NULL")),
        Index(
            "ix_erasures_shards", "requested_at", postgresql_where=text("shards_done_at IS NULL")
        ),
    )

    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"), primary_key=True)
    reason: Mapped[str]
    requested_by: Mapped[str] = _by()
    requested_at: Mapped[datetime] = now()
    objects_done_at: Mapped[datetime | None]
    rows_done_at: Mapped[datetime | None]
    shards_done_at: Mapped[datetime | None]


class ConfigEntry(Base):
    """A setting that SQL needs, written from the settings when the schema is migrated."""

    __tablename__ = "config"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
