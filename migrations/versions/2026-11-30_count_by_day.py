"""Add tables that count by day, and mark decisions that contradict the verdict.

The counts themselves are kept by triggers of worker/moderation/sql/counts.sql, which count what is
there when they are installed first.

Revision: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

#: Their triggers stand on tables that stay.
FUNCTIONS = (
    "count_new_verdicts",
    "count_changed_verdict",
    "count_decision",
    "count_draw",
    "count_appeal",
    "count_new_images",
    "count_failure",
    "count_source",
    "mark_contradiction",
)

#: Decisions are append-only, for everybody but this.
MARK = """
    ALTER TABLE app.decisions DISABLE TRIGGER append_only;
    UPDATE app.decisions d SET contradicts = true
    FROM app.verdicts v WHERE v.id = d.verdict_id AND v.label <> d.decision;
    ALTER TABLE app.decisions ENABLE TRIGGER append_only;
"""


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "verdict_counts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("policy_id", sa.BigInteger(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("overturns", sa.Boolean(), nullable=False),
        sa.Column("audited", sa.Boolean(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("loose", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verdict_counts")),
        schema="app",
    )
    counted = ("uploads", "failed", "decisions", "overturns", "appeals")
    op.create_table(
        "source_counts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
            for name in counted
        ),
        sa.Column("loose", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source_counts")),
        schema="app",
    )
    op.create_table(
        "flag_counts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("flagged", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flag_counts")),
        schema="app",
    )
    op.create_table(
        "decision_medians",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("day", "source", name=op.f("pk_decision_medians")),
        schema="app",
    )
    for table in ("verdict_counts", "source_counts"):
        op.create_index(f"ix_{table}_day", table, ["day"], schema="app")
        op.create_index(
            f"ix_{table}_loose", table, ["day"], schema="app", postgresql_where=sa.text("loose")
        )
    op.create_index("ix_flag_counts_at", "flag_counts", ["at"], schema="app")
    op.add_column(
        "decisions",
        sa.Column("contradicts", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="app",
    )
    op.execute(MARK)
    op.create_index(
        "ix_decisions_contradicting",
        "decisions",
        ["id"],
        schema="app",
        postgresql_where=sa.text("contradicts"),
    )


def downgrade() -> None:
    """Undo. The views read the columns; `unlatent migrate` makes them again."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION IF EXISTS app.{name}() CASCADE")
    op.drop_index("ix_decisions_contradicting", "decisions", schema="app")
    op.drop_column("decisions", "contradicts", schema="app")
    for table in ("decision_medians", "flag_counts", "source_counts", "verdict_counts"):
        op.drop_table(table, schema="app")
