"""Create the ledger.

Rolling deploys: the old code runs on this schema until its last pod is gone, and a rollback runs it
again. So a migration only adds: new columns are nullable or have a default, new constraints come
NOT VALID and are validated by a later migration, indexes of big tables are built CONCURRENTLY in a
migration of their own, and a column goes only in the release after the last code that reads it.

Revision: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: Changes of state go from `pending` to an end; a removal withdraws from anywhere, and a person may
#: reopen what failed. Whoever makes the change, it is in the audit.
AUDIT_STATE = """
CREATE FUNCTION app.audit_image_state() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
DECLARE
    doing jsonb := jsonb_build_object('application', current_setting('application_name'));
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO app.audit_log (action, image_id, to_state, reason, detail)
        VALUES ('state', NEW.id, NEW.state, NEW.reason, doing);
        RETURN NULL;
    END IF;
    IF NOT (
        OLD.state = 'pending'
        OR NEW.state = 'withdrawn'
        OR (NEW.state = 'pending' AND OLD.state IN ('failed', 'quarantined'))
    ) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'check_violation',
            MESSAGE = 'image ' || OLD.id || ' cannot go from ' || OLD.state || ' to ' || NEW.state;
    END IF;
    INSERT INTO app.audit_log (action, image_id, from_state, to_state, reason, detail)
    VALUES ('state', NEW.id, OLD.state, NEW.state, NEW.reason, doing);
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION app.audit_image_state() FROM PUBLIC;
CREATE TRIGGER audit_registered AFTER INSERT ON app.images
    FOR EACH ROW EXECUTE FUNCTION app.audit_image_state();
CREATE TRIGGER audit_state AFTER UPDATE OF state ON app.images
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION app.audit_image_state();
"""

AUDIT_CHAMPION = """
CREATE FUNCTION app.audit_champion() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    INSERT INTO app.audit_log (actor, action, to_state, reason, detail)
    VALUES (NEW.actor, NEW.action, NEW.model_version, NEW.reason,
            jsonb_build_object('forced', NEW.forced, 'session', SESSION_USER));
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION app.audit_champion() FROM PUBLIC;
CREATE TRIGGER audit_champion AFTER INSERT ON app.champion
    FOR EACH ROW EXECUTE FUNCTION app.audit_champion();
"""

APPEND_ONLY_TABLES = ("appeals", "audit_log", "champion", "decisions")

#: Holds for the owner too, whom grants do not bind.
REFUSE_CHANGE = """
CREATE FUNCTION app.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'insufficient_privilege',
        MESSAGE = 'table ' || TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME || ' is append-only';
END
$$;
REVOKE ALL ON FUNCTION app.refuse_change() FROM PUBLIC;
"""

#: What the service does, table by table; nothing it does deletes a row.
GRANTS = {
    "SELECT, INSERT, UPDATE": (
        "claims",
        "images",
        "leases",
        "model_versions",
        "object_removals",
        "outbox",
        "regression_items",
        "verdicts",
    ),
    "SELECT, INSERT": ("appeals", "champion", "decisions"),
    "SELECT": ("audit_log",),
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("actor", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=True),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "detail",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        schema="app",
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"], unique=False, schema="app")
    op.create_index(
        "ix_audit_log_image_id",
        "audit_log",
        ["image_id"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("image_id IS NOT NULL"),
    )
    op.create_table(
        "images",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Text(), nullable=True),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("sequencer", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("claimed_sha256", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("format", sa.Text(), nullable=True),
        sa.Column("width", sa.BigInteger(), nullable=True),
        sa.Column("height", sa.BigInteger(), nullable=True),
        sa.Column("pdq", sa.LargeBinary(), nullable=True),
        sa.Column("pdq_quality", sa.SmallInteger(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("uploader", sa.Text(), nullable=True),
        sa.Column("priority", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column(
            "state_since",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("deaths", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("uploaded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('pending', 'scored')) = (reason IS NULL)", name=op.f("ck_images_reason")
        ),
        sa.CheckConstraint(
            "claimed_sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_images_claimed_sha256")
        ),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_images_sha256")),
        sa.CheckConstraint(
            "state IN ('pending', 'scored', 'failed', 'quarantined', 'superseded', 'withdrawn')",
            name=op.f("ck_images_state"),
        ),
        sa.CheckConstraint("deaths >= 0", name=op.f("ck_images_deaths")),
        sa.CheckConstraint("octet_length(pdq) = 32", name=op.f("ck_images_pdq")),
        sa.CheckConstraint(
            "version_id IS NOT NULL OR etag IS NOT NULL", name=op.f("ck_images_identified")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        schema="app",
    )
    op.create_index("ix_images_bucket_key", "images", ["bucket", "key"], unique=False, schema="app")
    op.create_index("ix_images_created_at", "images", ["created_at"], unique=False, schema="app")
    op.create_index(
        "ix_images_pending",
        "images",
        ["published_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_images_reopenable",
        "images",
        ["reason", "state_since"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("state IN ('failed', 'quarantined')"),
    )
    op.create_index(
        "ix_images_sha256",
        "images",
        ["sha256"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("sha256 IS NOT NULL"),
    )
    op.create_index(
        "ix_images_waiting",
        "images",
        ["state_since"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "uq_images_identity",
        "images",
        ["bucket", "key", "version_id", "etag"],
        unique=True,
        schema="app",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("state <> 'withdrawn'"),
    )
    op.create_table(
        "model_versions",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("training_snapshot", sa.Text(), nullable=True),
        sa.Column("code_revision", sa.Text(), nullable=True),
        sa.Column(
            "registered_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False
        ),
        sa.Column(
            "registered_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_model_versions")),
        schema="app",
    )
    op.create_table(
        "object_removals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Text(), nullable=True),
        sa.Column("sequencer", sa.Text(), nullable=True),
        sa.Column(
            "removed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_object_removals")),
        schema="app",
    )
    op.create_index(
        "uq_object_removals_identity",
        "object_removals",
        ["bucket", "key", "version_id"],
        unique=True,
        schema="app",
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "next_attempt_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dead_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        schema="app",
    )
    op.create_index(
        "ix_outbox_due",
        "outbox",
        ["next_attempt_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("delivered_at IS NULL AND dead_at IS NULL"),
    )
    op.create_table(
        "champion",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("forced", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("action IN ('promote', 'rollback')", name=op.f("ck_champion_action")),
        sa.ForeignKeyConstraint(
            ["model_version"],
            ["app.model_versions.digest"],
            name=op.f("fk_champion_model_version_model_versions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_champion")),
        schema="app",
    )
    op.create_table(
        "claims",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("moderator", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column(
            "since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('decided', 'released', 'expired')", name=op.f("ck_claims_outcome")
        ),
        sa.CheckConstraint(
            "(closed_at IS NULL) = (outcome IS NULL)", name=op.f("ck_claims_closed")
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_claims_image_id_images")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claims")),
        schema="app",
    )
    op.create_index("ix_claims_image_id", "claims", ["image_id"], unique=False, schema="app")
    op.create_index(
        "ix_claims_open_until",
        "claims",
        ["until"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "uq_claims_open",
        "claims",
        ["image_id"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column(
            "since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('scored', 'failed', 'superseded', 'retry', 'released', 'death')",
            name=op.f("ck_leases_outcome"),
        ),
        sa.CheckConstraint(
            "purpose IN ('score', 'rescore', 'shadow')", name=op.f("ck_leases_purpose")
        ),
        sa.CheckConstraint(
            "(closed_at IS NULL) = (outcome IS NULL)", name=op.f("ck_leases_closed")
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_leases_image_id_images")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        schema="app",
    )
    op.create_index(
        "ix_leases_deaths",
        "leases",
        ["until"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL OR outcome = 'death'"),
    )
    op.create_index("ix_leases_image_id", "leases", ["image_id"], unique=False, schema="app")
    op.create_index(
        "uq_leases_open",
        "leases",
        ["image_id"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("lease_id", sa.BigInteger(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("branches", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("operating_point", sa.Text(), nullable=False),
        sa.Column("prior", sa.Double(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("evidence_uri", sa.Text(), nullable=True),
        sa.Column("reused_from", sa.Uuid(), nullable=True),
        sa.Column(
            "timings_ms",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "scored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "label IN ('real', 'generated', 'unsure')", name=op.f("ck_verdicts_label")
        ),
        sa.CheckConstraint(
            "role IN ('champion', 'shadow', 'rescore')", name=op.f("ck_verdicts_role")
        ),
        sa.CheckConstraint("prior BETWEEN 0 AND 1", name=op.f("ck_verdicts_prior")),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name=op.f("ck_verdicts_score")),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_verdicts_image_id_images")
        ),
        sa.ForeignKeyConstraint(
            ["lease_id"], ["app.leases.id"], name=op.f("fk_verdicts_lease_id_leases")
        ),
        sa.ForeignKeyConstraint(
            ["reused_from"], ["app.images.id"], name=op.f("fk_verdicts_reused_from_images")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verdicts")),
        schema="app",
    )
    op.create_index(
        "ix_verdicts_champion",
        "verdicts",
        ["image_id", "scored_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("role = 'champion'"),
    )
    op.create_index(
        "ix_verdicts_model_version_scored_at",
        "verdicts",
        ["model_version", "scored_at"],
        unique=False,
        schema="app",
    )
    op.create_index(
        "uq_verdicts_image_id_model_version",
        "verdicts",
        ["image_id", "model_version"],
        unique=True,
        schema="app",
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("moderator", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("reason_code", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("why_reviewed", sa.Text(), nullable=False),
        sa.Column("verdict_id", sa.BigInteger(), nullable=True),
        sa.Column("overturns", sa.BigInteger(), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "decision IN ('real', 'generated', 'unsure')", name=op.f("ck_decisions_decision")
        ),
        sa.CheckConstraint(
            "why_reviewed IN ('flagged', 'unsure', 'audit', 'appeal', 'report', 'requested')",
            name=op.f("ck_decisions_why_reviewed"),
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_decisions_image_id_images")
        ),
        sa.ForeignKeyConstraint(
            ["overturns"], ["app.decisions.id"], name=op.f("fk_decisions_overturns_decisions")
        ),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["app.verdicts.id"], name=op.f("fk_decisions_verdict_id_verdicts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
        schema="app",
    )
    op.create_index(
        "ix_decisions_created_at", "decisions", ["created_at"], unique=False, schema="app"
    )
    op.create_index("ix_decisions_image_id", "decisions", ["image_id"], unique=False, schema="app")
    op.create_table(
        "appeals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("appeal_id", sa.Uuid(), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("decision_id", sa.BigInteger(), nullable=True),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "event IN ('opened', 'upheld', 'overturned', 'dropped')", name=op.f("ck_appeals_event")
        ),
        sa.ForeignKeyConstraint(
            ["decision_id"], ["app.decisions.id"], name=op.f("fk_appeals_decision_id_decisions")
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_appeals_image_id_images")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appeals")),
        schema="app",
    )
    op.create_index("ix_appeals_image_id", "appeals", ["image_id"], unique=False, schema="app")
    op.create_index(
        "uq_appeals_closed",
        "appeals",
        ["appeal_id"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("event <> 'opened'"),
    )
    op.create_index(
        "uq_appeals_opened",
        "appeals",
        ["appeal_id"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("event = 'opened'"),
    )
    op.create_table(
        "regression_items",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("decision_id", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "label IN ('real', 'generated')", name=op.f("ck_regression_items_label")
        ),
        sa.ForeignKeyConstraint(
            ["decision_id"],
            ["app.decisions.id"],
            name=op.f("fk_regression_items_decision_id_decisions"),
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_regression_items_image_id_images")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_regression_items")),
        schema="app",
    )
    op.create_index(
        "uq_regression_items_image_id", "regression_items", ["image_id"], unique=True, schema="app"
    )
    op.execute(AUDIT_STATE)
    op.execute(AUDIT_CHAMPION)
    op.execute(REFUSE_CHANGE)
    for table in APPEND_ONLY_TABLES:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON app.{table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change()"
        )
    grants = "\n".join(
        f"GRANT {rights} ON app.{table} TO unlatent_app;"
        for rights, tables in GRANTS.items()
        for table in tables
    )
    # Roles belong to the cluster: one that the operator did not create is none of our business.
    op.execute(
        f"""
        DO $$
        BEGIN
            IF to_regrole('unlatent_app') IS NOT NULL THEN
                GRANT USAGE ON SCHEMA app TO unlatent_app;
                GRANT SELECT ON app.alembic_version TO unlatent_app;
                {grants}
            END IF;
        END
        $$
        """
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index("uq_regression_items_image_id", table_name="regression_items", schema="app")
    op.drop_table("regression_items", schema="app")
    op.drop_index(
        "uq_appeals_opened",
        table_name="appeals",
        schema="app",
        postgresql_where=sa.text("event = 'opened'"),
    )
    op.drop_index(
        "uq_appeals_closed",
        table_name="appeals",
        schema="app",
        postgresql_where=sa.text("event <> 'opened'"),
    )
    op.drop_index("ix_appeals_image_id", table_name="appeals", schema="app")
    op.drop_table("appeals", schema="app")
    op.drop_index("ix_decisions_image_id", table_name="decisions", schema="app")
    op.drop_index("ix_decisions_created_at", table_name="decisions", schema="app")
    op.drop_table("decisions", schema="app")
    op.drop_index("uq_verdicts_image_id_model_version", table_name="verdicts", schema="app")
    op.drop_index("ix_verdicts_model_version_scored_at", table_name="verdicts", schema="app")
    op.drop_index(
        "ix_verdicts_champion",
        table_name="verdicts",
        schema="app",
        postgresql_where=sa.text("role = 'champion'"),
    )
    op.drop_table("verdicts", schema="app")
    op.drop_index(
        "uq_leases_open",
        table_name="leases",
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_index("ix_leases_image_id", table_name="leases", schema="app")
    op.drop_index(
        "ix_leases_deaths",
        table_name="leases",
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL OR outcome = 'death'"),
    )
    op.drop_table("leases", schema="app")
    op.drop_index(
        "uq_claims_open",
        table_name="claims",
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_index(
        "ix_claims_open_until",
        table_name="claims",
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_index("ix_claims_image_id", table_name="claims", schema="app")
    op.drop_table("claims", schema="app")
    op.drop_table("champion", schema="app")
    op.drop_index(
        "ix_outbox_due",
        table_name="outbox",
        schema="app",
        postgresql_where=sa.text("delivered_at IS NULL AND dead_at IS NULL"),
    )
    op.drop_table("outbox", schema="app")
    op.drop_index(
        "uq_object_removals_identity",
        table_name="object_removals",
        schema="app",
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("object_removals", schema="app")
    op.drop_table("model_versions", schema="app")
    op.drop_index(
        "uq_images_identity",
        table_name="images",
        schema="app",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("state <> 'withdrawn'"),
    )
    op.drop_index(
        "ix_images_waiting",
        table_name="images",
        schema="app",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index(
        "ix_images_sha256",
        table_name="images",
        schema="app",
        postgresql_where=sa.text("sha256 IS NOT NULL"),
    )
    op.drop_index(
        "ix_images_reopenable",
        table_name="images",
        schema="app",
        postgresql_where=sa.text("state IN ('failed', 'quarantined')"),
    )
    op.drop_index(
        "ix_images_pending",
        table_name="images",
        schema="app",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index("ix_images_created_at", table_name="images", schema="app")
    op.drop_index("ix_images_bucket_key", table_name="images", schema="app")
    op.drop_table("images", schema="app")
    op.drop_index(
        "ix_audit_log_image_id",
        table_name="audit_log",
        schema="app",
        postgresql_where=sa.text("image_id IS NOT NULL"),
    )
    op.drop_index("ix_audit_log_at", table_name="audit_log", schema="app")
    op.drop_table("audit_log", schema="app")
    op.execute("DROP FUNCTION app.refuse_change()")
    op.execute("DROP FUNCTION app.audit_champion()")
    op.execute("DROP FUNCTION app.audit_image_state()")
