"""Add the tables of moderation.

Rolling deploys: the old code runs on this schema until its last pod is gone, and a rollback runs it
again. So a migration only adds: new columns are nullable or have a default, new constraints come
NOT VALID and are validated by a later migration, indexes of big tables are built CONCURRENTLY in a
migration of their own, and a column goes only in the release after the last code that reads it.

Revision: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: What the service does, table by table.
GRANTS = {
    "SELECT, INSERT": ("policies",),
    "SELECT, INSERT, UPDATE": (
        "breakers",
        "erasures",
        "legal_holds",
        "provenance",
        "reviews",
    ),
    "SELECT, INSERT, UPDATE, DELETE": ("moderators",),
    "SELECT": ("config", "reason_codes"),
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "config",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_config")),
        schema="app",
    )
    op.create_table(
        "moderators",
        sa.Column("moderator", sa.Text(), nullable=False),
        sa.Column("every_source", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "sources", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False
        ),
        sa.Column("lead", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("added_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column(
            "added_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("moderator", name=op.f("pk_moderators")),
        schema="app",
    )
    op.create_table(
        "policies",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("review", sa.Double(), nullable=False),
        sa.Column("flag", sa.Double(), nullable=False),
        sa.Column("flag_high", sa.Double(), nullable=False),
        sa.Column("audit_share", sa.Double(), server_default=sa.text("0.005"), nullable=False),
        sa.Column("min_flag_share", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_flag_share", sa.Double(), server_default=sa.text("0.2"), nullable=False),
        sa.Column(
            "breaker_window",
            sa.Interval(),
            server_default=sa.text("'01:00:00'::interval"),
            nullable=False,
        ),
        sa.Column("breaker_images", sa.BigInteger(), server_default=sa.text("200"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "0 <= min_flag_share AND min_flag_share <= max_flag_share AND max_flag_share <= 1",
            name=op.f("ck_policies_band"),
        ),
        sa.CheckConstraint(
            "0 <= review AND review <= flag AND flag <= flag_high AND flag_high <= 1",
            name=op.f("ck_policies_order"),
        ),
        sa.CheckConstraint("audit_share BETWEEN 0 AND 1", name=op.f("ck_policies_audit_share")),
        sa.CheckConstraint("breaker_images > 0", name=op.f("ck_policies_breaker_images")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policies")),
        schema="app",
    )
    op.create_index("ix_policies_source", "policies", ["source", "id"], unique=False, schema="app")
    op.create_table(
        "reason_codes",
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "decision IN ('real', 'generated', 'unsure')", name=op.f("ck_reason_codes_decision")
        ),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_reason_codes")),
        schema="app",
    )
    op.create_table(
        "breakers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("policy_id", sa.BigInteger(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("flag_share", sa.Double(), nullable=False),
        sa.Column(
            "opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_by", sa.Text(), nullable=True),
        sa.Column("close_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["app.policies.id"], name=op.f("fk_breakers_policy_id_policies")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_breakers")),
        schema="app",
    )
    op.create_index(
        "ix_breakers_source", "breakers", ["source", "closed_at"], unique=False, schema="app"
    )
    op.create_index(
        "uq_breakers_open",
        "breakers",
        ["source"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "erasures",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "requested_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False
        ),
        sa.Column(
            "requested_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("objects_done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rows_done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("shards_done_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_erasures_image_id_images")
        ),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_erasures")),
        schema="app",
    )
    op.create_index(
        "ix_erasures_open",
        "erasures",
        ["requested_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("rows_done_at IS NULL"),
    )
    op.create_index(
        "ix_erasures_shards",
        "erasures",
        ["requested_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("shards_done_at IS NULL"),
    )
    op.create_table(
        "legal_holds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("placed_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column(
            "placed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("lifted_by", sa.Text(), nullable=True),
        sa.Column("lifted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_legal_holds_image_id_images")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_legal_holds")),
        schema="app",
    )
    op.create_index(
        "uq_legal_holds_standing",
        "legal_holds",
        ["image_id"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("lifted_at IS NULL"),
    )
    op.create_table(
        "provenance",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("exif_make", sa.Text(), nullable=True),
        sa.Column("exif_model", sa.Text(), nullable=True),
        sa.Column("exif_software", sa.Text(), nullable=True),
        sa.Column("exif_taken_at", sa.Text(), nullable=True),
        sa.Column("iptc_digital_source_type", sa.Text(), nullable=True),
        sa.Column("iptc_asserts_ai", sa.Boolean(), nullable=False),
        sa.Column("c2pa_state", sa.Text(), nullable=False),
        sa.Column("c2pa_claim_generator", sa.Text(), nullable=True),
        sa.Column("c2pa_digital_source_types", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("c2pa_asserts_ai", sa.Boolean(), nullable=False),
        sa.Column("c2pa_problems", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "read_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "c2pa_state IN ('absent', 'valid', 'invalid', 'unreadable')",
            name=op.f("ck_provenance_c2pa_state"),
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_provenance_image_id_images")
        ),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_provenance")),
        schema="app",
    )
    op.create_table(
        "reviews",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("verdict_id", sa.BigInteger(), nullable=True),
        sa.Column("uncertainty", sa.Double(), nullable=False),
        sa.Column("reach", sa.BigInteger(), nullable=False),
        sa.Column("audit_share", sa.Double(), nullable=True),
        sa.Column(
            "queued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("rank_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "queue IN ('flagged', 'unsure', 'audit', 'appeal', 'report', 'requested')",
            name=op.f("ck_reviews_queue"),
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_reviews_image_id_images")
        ),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["app.verdicts.id"], name=op.f("fk_reviews_verdict_id_verdicts")
        ),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_reviews")),
        schema="app",
    )
    op.create_index(
        "ix_reviews_audited",
        "reviews",
        ["source"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("audit_share IS NOT NULL"),
    )
    op.create_index(
        "ix_reviews_open",
        "reviews",
        ["rank_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "ix_reviews_open_queue",
        "reviews",
        ["queue", "rank_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "ix_reviews_open_source",
        "reviews",
        ["source", "rank_at"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.add_column(
        "images",
        sa.Column("object_removed_at", sa.DateTime(timezone=True), nullable=True),
        schema="app",
    )
    op.add_column(
        "images", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True), schema="app"
    )
    op.add_column("verdicts", sa.Column("tier", sa.Text(), nullable=True), schema="app")
    op.add_column("verdicts", sa.Column("policy_id", sa.BigInteger(), nullable=True), schema="app")
    op.add_column(
        "verdicts",
        sa.Column("held", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="app",
    )
    op.create_index(
        "ix_verdicts_scored_at",
        "verdicts",
        ["scored_at", "id"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("role = 'champion'"),
    )
    op.create_index(
        "ix_verdicts_notable",
        "verdicts",
        ["scored_at", "id"],
        unique=False,
        schema="app",
        postgresql_where=sa.text("role = 'champion' AND (tier <> 'allow' OR label <> 'real')"),
    )
    op.create_foreign_key(
        op.f("fk_verdicts_policy_id_policies"),
        "verdicts",
        "policies",
        ["policy_id"],
        ["id"],
        source_schema="app",
        referent_schema="app",
    )
    op.create_check_constraint(
        op.f("ck_verdicts_tier"),
        "verdicts",
        "tier IN ('allow', 'review', 'flag', 'flag_high')",
        schema="app",
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON app.policies "
        "FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change()"
    )
    grants = "\n".join(
        f"GRANT {rights} ON app.{table} TO unlatent_app;"
        for rights, tables in GRANTS.items()
        for table in tables
    )
    op.execute(
        f"""
        DO $$
        BEGIN
            IF to_regrole('unlatent_app') IS NOT NULL THEN
                {grants}
            END IF;
        END
        $$
        """
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_verdicts_notable", table_name="verdicts", schema="app")
    op.drop_index("ix_verdicts_scored_at", table_name="verdicts", schema="app")
    for column in ("held", "policy_id", "tier"):
        op.drop_column("verdicts", column, schema="app")
    for column in ("erased_at", "object_removed_at"):
        op.drop_column("images", column, schema="app")
    for table in (
        "reviews",
        "provenance",
        "legal_holds",
        "erasures",
        "breakers",
        "reason_codes",
        "policies",
        "moderators",
        "config",
    ):
        op.drop_table(table, schema="app")
