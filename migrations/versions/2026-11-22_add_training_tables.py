"""Add the tables of retraining.

Revision: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: What the service does, table by table.
GRANTS = {
    "SELECT, INSERT, UPDATE": ("dataset_snapshots", "training_runs"),
    "SELECT, INSERT": ("snapshot_items",),
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "dataset_snapshots",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column(
            "left_out",
            postgresql.JSONB(),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("decisions_up_to", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("report", postgresql.JSONB(), nullable=True),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(digest IS NULL) = (sealed_at IS NULL)", name=op.f("ck_dataset_snapshots_sealed")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_snapshots")),
        schema="app",
    )
    op.create_index(
        "uq_dataset_snapshots_digest", "dataset_snapshots", ["digest"], unique=True, schema="app"
    )
    op.create_table(
        "snapshot_items",
        sa.Column("snapshot_id", sa.BigInteger(), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.CheckConstraint("label IN ('real', 'generated')", name=op.f("ck_snapshot_items_label")),
        sa.CheckConstraint(
            "why IN ('decision', 'trusted_source')", name=op.f("ck_snapshot_items_why")
        ),
        sa.CheckConstraint(
            "side IN ('training', 'calibration', 'evaluation')",
            name=op.f("ck_snapshot_items_side"),
        ),
        sa.CheckConstraint("weight > 0", name=op.f("ck_snapshot_items_weight")),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["app.dataset_snapshots.id"],
            name=op.f("fk_snapshot_items_snapshot_id_dataset_snapshots"),
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_snapshot_items_image_id_images")
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "image_id", name=op.f("pk_snapshot_items")),
        schema="app",
    )
    op.create_index("ix_snapshot_items_image_id", "snapshot_items", ["image_id"], schema="app")
    op.create_table(
        "training_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "stages",
            postgresql.JSONB(),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deaths", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'finished', 'empty', 'failed', 'refused')",
            name=op.f("ck_training_runs_state"),
        ),
        sa.CheckConstraint(
            "(state = 'running') = (ended_at IS NULL)", name=op.f("ck_training_runs_ended")
        ),
        sa.CheckConstraint(
            "(state IN ('running', 'finished')) = (reason IS NULL)",
            name=op.f("ck_training_runs_reason"),
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["app.dataset_snapshots.id"],
            name=op.f("fk_training_runs_snapshot_id_dataset_snapshots"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
        schema="app",
    )
    op.create_index("uq_training_runs_slot", "training_runs", ["slot"], unique=True, schema="app")
    op.create_index(
        "uq_training_runs_running",
        "training_runs",
        ["state"],
        unique=True,
        schema="app",
        postgresql_where=sa.text("state = 'running'"),
    )
    for rights, tables in GRANTS.items():
        for table in tables:
            op.execute(f"GRANT {rights} ON app.{table} TO unlatent_app")


def downgrade() -> None:
    """Undo."""
    for table in ("training_runs", "snapshot_items", "dataset_snapshots"):
        op.drop_table(table, schema="app")
