"""Tables of schema `app` as typed SQLAlchemy models; design §6 says what each one is for.

The tables belong to `unlatent_owner`; the service works as `unlatent_app`, whose rights migrations
grant. Triggers (append-only tables, the audit of every change of state) live in migrations only.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Interval,
    SmallInteger,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from detection.score import Label
from worker.database.table_base import Base, empty, now, one_of, serial
from worker.ledger.interface import LeaseOutcome, Purpose, Role, State


class Image(Base):
    """One upload: its identity, what is known of its bytes, and where it stands."""

    __tablename__ = "images"
    __table_args__ = (
        one_of("state", State),
        CheckConstraint("version_id IS NOT NULL OR etag IS NOT NULL", name="identified"),
        CheckConstraint("(state IN ('pending', 'scored')) = (reason IS NULL)", name="reason"),
        CheckConstraint("deaths >= 0", name="deaths"),
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256"),
        CheckConstraint("claimed_sha256 ~ '^[0-9a-f]{64}$'", name="claimed_sha256"),
        CheckConstraint("octet_length(pdq) = 32", name="pdq"),
        Index(
            "uq_images_identity",
            "bucket",
            "key",
            "version_id",
            "etag",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("state <> 'withdrawn'"),
        ),
        # Withdrawals find every row of a key, withdrawn ones included.
        Index("ix_images_bucket_key", "bucket", "key"),
        Index("ix_images_sha256", "sha256", postgresql_where=text("sha256 IS NOT NULL")),
        Index(
            "ix_images_sha256_source",
            "sha256",
            "source",
            postgresql_where=text("sha256 IS NOT NULL"),
        ),
        Index("ix_images_pending", "published_at", postgresql_where=text("state = 'pending'")),
        Index("ix_images_waiting", "state_since", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_images_reopenable",
            "reason",
            "state_since",
            postgresql_where=text("state IN ('failed', 'quarantined')"),
        ),
        Index("ix_images_created_at", "created_at"),
        Index(
            "ix_images_uploader",
            "uploader",
            "created_at",
            postgresql_where=text("uploader IS NOT NULL"),
        ),
        Index(
            "ix_images_kept",
            "created_at",
            "id",
            postgresql_where=text(
                "object_removed_at IS NULL AND erased_at IS NULL AND state <> 'pending'"
            ),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    bucket: Mapped[str]
    key: Mapped[str]
    version_id: Mapped[str | None]
    etag: Mapped[str | None]
    sequencer: Mapped[str | None]
    content_type: Mapped[str | None]
    claimed_sha256: Mapped[str | None]
    sha256: Mapped[str | None]
    size_bytes: Mapped[int | None]
    format: Mapped[str | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    pdq: Mapped[bytes | None]
    pdq_quality: Mapped[int | None] = mapped_column(SmallInteger)
    source: Mapped[str]
    uploader: Mapped[str | None]
    priority: Mapped[bool] = mapped_column(server_default=text("false"))
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    reason: Mapped[str | None]
    detail: Mapped[str | None]
    state_since: Mapped[datetime] = now()
    #: Leases of this image that ran out without a word; forgiven when the image is reopened.
    deaths: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    uploaded_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = now()
    published_at: Mapped[datetime | None]
    #: When retention removed the object, and when a request erased what identifies the upload.
    object_removed_at: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]
    #: When retention took the object up for removal: what removes it from now on is retention.
    expiring_at: Mapped[datetime | None]
    #: When the object was stored again with the same bytes: its time counts from then.
    restored_at: Mapped[datetime | None]


class ObjectRemoval(Base):
    """The latest removal of an object, kept so that a late created event does not bring it back."""

    __tablename__ = "object_removals"
    __table_args__ = (
        Index(
            "uq_object_removals_identity",
            "bucket",
            "key",
            "version_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        Index("ix_object_removals_removed_at", "removed_at"),
    )

    id: Mapped[int] = serial()
    bucket: Mapped[str]
    key: Mapped[str]
    version_id: Mapped[str | None]
    sequencer: Mapped[str | None]
    removed_at: Mapped[datetime] = now()


class LeaseRow(Base):
    """One attempt of one worker at one image; at most one is open for an image."""

    __tablename__ = "leases"
    __table_args__ = (
        one_of("purpose", Purpose),
        one_of("outcome", LeaseOutcome),
        CheckConstraint("(closed_at IS NULL) = (outcome IS NULL)", name="closed"),
        Index(
            "uq_leases_open",
            "image_id",
            unique=True,
            postgresql_where=text("closed_at IS NULL"),
        ),
        Index("ix_leases_image_id", "image_id"),
        Index(
            "ix_leases_deaths",
            "until",
            postgresql_where=text("closed_at IS NULL OR outcome = 'death'"),
        ),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    worker: Mapped[str]
    purpose: Mapped[str]
    model_version: Mapped[str | None]
    since: Mapped[datetime] = now()
    until: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    detail: Mapped[str | None]


class RequestKey(Base):
    """Which request a client of `unlatent serve` sent under which `Idempotency-Key`, for a day."""

    __tablename__ = "request_keys"
    __table_args__ = (Index("ix_request_keys_at", "at"),)

    source: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[bytes]
    #: What it became; None while it is under way.
    image_id: Mapped[UUID | None]
    at: Mapped[datetime] = now()


class Policy(Base):
    """Thresholds on the score and what goes with them; append-only, the last one of a source rules.

    `source` NULL is the policy of every source that has none of its own. The breaker's band is the
    share of verdicts that get a `flag` tier within `breaker_window`.
    """

    __tablename__ = "policies"
    __table_args__ = (
        CheckConstraint(
            "0 <= review AND review <= flag AND flag <= flag_high AND flag_high <= 1", name="order"
        ),
        CheckConstraint("audit_share BETWEEN 0 AND 1", name="audit_share"),
        CheckConstraint(
            "0 <= min_flag_share AND min_flag_share <= max_flag_share AND max_flag_share <= 1",
            name="band",
        ),
        CheckConstraint("breaker_images > 0", name="breaker_images"),
        Index("ix_policies_source", "source", "id"),
    )

    id: Mapped[int] = serial()
    source: Mapped[str | None]
    review: Mapped[float] = mapped_column(Double)
    flag: Mapped[float] = mapped_column(Double)
    flag_high: Mapped[float] = mapped_column(Double)
    audit_share: Mapped[float] = mapped_column(Double, server_default=text("0.005"))
    min_flag_share: Mapped[float] = mapped_column(Double, server_default=text("0"))
    max_flag_share: Mapped[float] = mapped_column(Double, server_default=text("0.2"))
    breaker_window: Mapped[timedelta] = mapped_column(
        Interval, server_default=text("'01:00:00'::interval")
    )
    breaker_images: Mapped[int] = mapped_column(server_default=text("200"))
    reason: Mapped[str]
    created_by: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    created_at: Mapped[datetime] = now()


class VerdictRow(Base):
    """What one model version said of one image; never rewritten by another version."""

    __tablename__ = "verdicts"
    __table_args__ = (
        one_of("role", Role),
        one_of("label", Label),
        CheckConstraint("score BETWEEN 0 AND 1", name="score"),
        CheckConstraint("prior BETWEEN 0 AND 1", name="prior"),
        one_of("tier", ("allow", "review", "flag", "flag_high")),
        Index("uq_verdicts_image_id_model_version", "image_id", "model_version", unique=True),
        Index("ix_verdicts_model_version_scored_at", "model_version", "scored_at"),
        Index(
            "ix_verdicts_champion",
            "image_id",
            "scored_at",
            postgresql_where=text("role = 'champion'"),
        ),
        Index(
            "ix_verdicts_scored_at",
            "scored_at",
            "id",
            postgresql_where=text("role = 'champion'"),
        ),
        # The few that people ask for: a page of them costs the same however rare they are.
        Index(
            "ix_verdicts_notable",
            "scored_at",
            "id",
            postgresql_where=text("role = 'champion' AND (tier <> 'allow' OR label <> 'real')"),
        ),
        Index(
            "ix_verdicts_shadow",
            "model_version",
            "scored_at",
            postgresql_where=text("role = 'shadow'"),
        ),
        Index(
            "ix_verdicts_evidence",
            "scored_at",
            "id",
            postgresql_where=text("evidence_uri IS NOT NULL"),
        ),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    #: No foreign key: closed leases go after their time.
    lease_id: Mapped[int]
    model_version: Mapped[str]
    role: Mapped[str]
    score: Mapped[float]
    label: Mapped[str]
    branches: Mapped[dict[str, Any]]
    decided_by: Mapped[str]
    operating_point: Mapped[str]
    prior: Mapped[float]
    device: Mapped[str]
    dtype: Mapped[str]
    #: Verdicts of releases that did not count it are version 1, as their bundles are.
    intake_version: Mapped[int] = mapped_column(server_default=text("1"))
    thresholds_hold: Mapped[bool] = mapped_column(server_default=text("true"))
    #: Of an animation, the frame that decided, counted from 0; 0 for a still.
    frame: Mapped[int] = mapped_column(server_default=text("0"))
    evidence_uri: Mapped[str | None]
    #: What the policy in force made of the score; triggers fill them for a champion's verdict.
    tier: Mapped[str | None]
    policy_id: Mapped[int | None] = mapped_column(ForeignKey("app.policies.id"))
    #: A tripped circuit breaker turned a flag into a review.
    held: Mapped[bool] = mapped_column(server_default=text("false"))
    reused_from: Mapped[UUID | None] = mapped_column(ForeignKey("app.images.id"))
    timings_ms: Mapped[dict[str, Any]] = empty()
    scored_at: Mapped[datetime] = now()
    #: Why the label is unsure whatever the score; empty in rows of earlier releases.
    inapplicable_reason: Mapped[str | None]
    #: Log-odds of the score less those of the point of accusation; empty in rows of earlier
    #: releases and where nothing was judged.
    distance: Mapped[float | None]
    #: What the aligned branch read, `box` and `logit` of each; empty in rows of earlier releases.
    tiles: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)


class Decision(Base):
    """What a person said of an image, and what they saw when they said it; append-only.

    `blind` says that no function had shown them the verdict, `contradicts` that they said
    otherwise.
    """

    __tablename__ = "decisions"
    __table_args__ = (
        one_of("decision", Label),
        one_of("why_reviewed", ("flagged", "unsure", "audit", "appeal", "report", "requested")),
        Index("ix_decisions_image_id", "image_id"),
        Index("ix_decisions_created_at", "created_at"),
        Index("ix_decisions_moderator", "moderator", "id"),
        Index("ix_decisions_contradicting", "id", postgresql_where=text("contradicts")),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    moderator: Mapped[str]
    decision: Mapped[str]
    reason_code: Mapped[str]
    note: Mapped[str | None]
    why_reviewed: Mapped[str]
    verdict_id: Mapped[int | None] = mapped_column(ForeignKey("app.verdicts.id"))
    overturns: Mapped[int | None] = mapped_column(ForeignKey("app.decisions.id"))
    claimed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = now()
    blind: Mapped[bool] = mapped_column(server_default=text("false"))
    contradicts: Mapped[bool] = mapped_column(server_default=text("false"))


class AppealEvent(Base):
    """One step of an appeal; append-only, the last event of an `appeal_id` is where it stands."""

    __tablename__ = "appeals"
    __table_args__ = (
        one_of("event", ("opened", "upheld", "overturned", "dropped")),
        Index("ix_appeals_image_id", "image_id"),
        Index("ix_appeals_closed", "created_at", postgresql_where=text("event <> 'opened'")),
        # An appeal opens once and closes once.
        Index(
            "uq_appeals_opened",
            "appeal_id",
            unique=True,
            postgresql_where=text("event = 'opened'"),
        ),
        Index(
            "uq_appeals_closed",
            "appeal_id",
            unique=True,
            postgresql_where=text("event <> 'opened'"),
        ),
    )

    id: Mapped[int] = serial()
    appeal_id: Mapped[UUID]
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    decision_id: Mapped[int | None] = mapped_column(ForeignKey("app.decisions.id"))
    event: Mapped[str]
    actor: Mapped[str]
    note: Mapped[str | None]
    created_at: Mapped[datetime] = now()


class Claim(Base):
    """Who looks at what, since when and until when; at most one claim of an image is open."""

    __tablename__ = "claims"
    __table_args__ = (
        one_of("outcome", ("decided", "released", "expired")),
        CheckConstraint("(closed_at IS NULL) = (outcome IS NULL)", name="closed"),
        Index(
            "uq_claims_open",
            "image_id",
            unique=True,
            postgresql_where=text("closed_at IS NULL"),
        ),
        Index("ix_claims_open_until", "until", postgresql_where=text("closed_at IS NULL")),
        Index("ix_claims_image_id", "image_id"),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    moderator: Mapped[str]
    queue: Mapped[str]
    since: Mapped[datetime] = now()
    until: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    outcome: Mapped[str | None]


class RegressionItem(Base):
    """A closed report of a wrong label; pinned ones are evaluated on and never trained on."""

    __tablename__ = "regression_items"
    __table_args__ = (
        one_of("label", (Label.REAL, Label.GENERATED)),
        Index("uq_regression_items_image_id", "image_id", unique=True),
        Index("ix_regression_items_group_key", "group_key"),
    )

    id: Mapped[int] = serial()
    image_id: Mapped[UUID] = mapped_column(ForeignKey("app.images.id"))
    decision_id: Mapped[int] = mapped_column(ForeignKey("app.decisions.id"))
    label: Mapped[str]
    group_key: Mapped[str]
    pinned: Mapped[bool]
    created_at: Mapped[datetime] = now()


class OutboxMessage(Base):
    """A webhook to send to one endpoint, written in the transaction that caused it.

    Rows of one message share its `message_id`; those of earlier releases have none.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index(
            "ix_outbox_ended",
            text("coalesce(delivered_at, dead_at)"),
            postgresql_where=text("delivered_at IS NOT NULL OR dead_at IS NOT NULL"),
        ),
        Index(
            "ix_outbox_due",
            "next_attempt_at",
            postgresql_where=text("delivered_at IS NULL AND dead_at IS NULL"),
        ),
    )

    id: Mapped[int] = serial()
    topic: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    next_attempt_at: Mapped[datetime] = now()
    delivered_at: Mapped[datetime | None]
    dead_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
    endpoint: Mapped[str] = mapped_column(server_default=text("'main'"))
    message_id: Mapped[str | None]


class WebhookEndpoint(Base):
    """How one endpoint fares: since when it fails, when it last did, when it was switched off."""

    __tablename__ = "webhook_endpoints"

    name: Mapped[str] = mapped_column(primary_key=True)
    failing_since: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    switched_off_at: Mapped[datetime | None]
    last_error: Mapped[str | None]


class AuditEntry(Base):
    """One change of state and who made it; append-only, written by triggers and functions."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_image_id", "image_id", postgresql_where=text("image_id IS NOT NULL")),
        Index("ix_audit_log_at", "at"),
    )

    id: Mapped[int] = serial()
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    actor: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    action: Mapped[str]
    #: No foreign key: the audit outlives what it speaks of.
    image_id: Mapped[UUID | None]
    from_state: Mapped[str | None]
    to_state: Mapped[str | None]
    reason: Mapped[str | None]
    detail: Mapped[dict[str, Any]] = empty()


class ModelVersionRow(Base):
    """A released detector: the digest that verdicts carry, and where it came from."""

    __tablename__ = "model_versions"

    digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    uri: Mapped[str]
    manifest: Mapped[dict[str, Any]]
    training_snapshot: Mapped[str | None]
    code_revision: Mapped[str | None]
    registered_by: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    registered_at: Mapped[datetime] = now()


class ChampionEntry(Base):
    """Who was champion since when; append-only, the last row is the one in force."""

    __tablename__ = "champion"
    __table_args__ = (one_of("action", ("promote", "rollback")),)

    id: Mapped[int] = serial()
    model_version: Mapped[str] = mapped_column(ForeignKey("app.model_versions.digest"))
    action: Mapped[str]
    forced: Mapped[bool] = mapped_column(server_default=text("false"))
    actor: Mapped[str]
    reason: Mapped[str]
    since: Mapped[datetime] = now()


class ShadowEntry(Base):
    """Which challenger scores beside the champion since when; append-only, the last row counts.

    A row without a model version ends the shadow.
    """

    __tablename__ = "shadow"

    id: Mapped[int] = serial()
    model_version: Mapped[str | None] = mapped_column(ForeignKey("app.model_versions.digest"))
    actor: Mapped[str]
    reason: Mapped[str]
    since: Mapped[datetime] = now()
