"""Count by day, let rows go that are no longer needed, and send webhooks to several endpoints.

The counts themselves are kept by triggers of worker/moderation/sql/counts.sql, which count what is
there when they are installed first. A verdict keeps the number of the lease in which it was given,
and no longer the lease itself.

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

#: Name, table, columns, condition.
INDEXES = (
    ("ix_object_removals_removed_at", "object_removals", ["removed_at"], None),
    (
        "ix_outbox_ended",
        "outbox",
        ["coalesce(delivered_at, dead_at)"],
        "delivered_at IS NOT NULL OR dead_at IS NOT NULL",
    ),
    ("ix_appeals_closed", "appeals", ["created_at"], "event <> 'opened'"),
    ("ix_verdicts_shadow", "verdicts", ["model_version", "scored_at"], "role = 'shadow'"),
)

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

#: Decisions are append-only, for everybody but this. It reads all of them, and their verdicts.
MARK = """
    SET LOCAL statement_timeout = 0;
    ALTER TABLE app.decisions DISABLE TRIGGER append_only;
    UPDATE app.decisions d SET contradicts = true
    FROM app.verdicts v WHERE v.id = d.verdict_id AND v.label <> d.decision;
    ALTER TABLE app.decisions ENABLE TRIGGER append_only;
    SET LOCAL statement_timeout = '60s';
"""

REFUSE_CHANGE = """
CREATE OR REPLACE FUNCTION app.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
{exception}    RAISE EXCEPTION USING
        ERRCODE = 'insufficient_privilege',
        MESSAGE = 'table ' || TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME || ' is append-only';
END
$$
"""

#: Only app.prune, which runs as the owner, has both the right to delete and a reason.
PRUNING = """\
    IF TG_TABLE_NAME = 'audit_log' AND TG_OP = 'DELETE'
        AND current_setting('unlatent.pruning', true) = 'on'
    THEN
        RETURN NULL;
    END IF;
"""


def upgrade() -> None:
    """Apply. What takes long and ends by itself comes first: the rest is one transaction."""
    add_indexes()
    # In the order in which a verdict and a decision take them: nobody waits for each other.
    op.execute("LOCK TABLE app.verdicts, app.leases, app.decisions, app.outbox")
    op.drop_constraint("fk_verdicts_lease_id_leases", "verdicts", schema="app")
    count_by_day()
    add_webhook_endpoints()
    let_rows_go()


def add_indexes() -> None:
    """Let pruning find what is due, and readers what is rare. The tables are big: nobody waits.

    An index that was cut short is left behind, and is of no use: it goes when this runs again.
    """
    with op.get_context().autocommit_block():
        for name, table, columns, where in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS app.{name}")
            op.create_index(
                name,
                table,
                [sa.text(column) for column in columns],
                schema="app",
                postgresql_where=None if where is None else sa.text(where),
                postgresql_concurrently=True,
            )


def count_by_day() -> None:
    """Add the tables of counts, and mark decisions that contradict the verdict."""
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


def add_webhook_endpoints() -> None:
    """Give messages an endpoint and an id of their own."""
    op.create_table(
        "webhook_endpoints",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("switched_off_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_webhook_endpoints")),
        schema="app",
    )
    op.execute("GRANT SELECT, INSERT, UPDATE ON app.webhook_endpoints TO unlatent_app")
    op.add_column(
        "outbox",
        sa.Column("endpoint", sa.Text(), server_default=sa.text("'main'"), nullable=False),
        schema="app",
    )
    op.add_column("outbox", sa.Column("message_id", sa.Text(), nullable=True), schema="app")


def let_rows_go() -> None:
    """Let pruning delete."""
    op.create_table(
        "prune_cursors",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("after_id", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "began_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_prune_cursors")),
        schema="app",
    )
    op.execute("GRANT SELECT ON app.prune_cursors TO unlatent_app")
    op.execute(REFUSE_CHANGE.format(exception=PRUNING))


def downgrade() -> None:
    """Undo. The views read the columns; `unlatent migrate` makes them again.

    Verdicts whose leases are gone keep their numbers, which nothing checks. The earlier release
    knows one endpoint: what waits for others goes.
    """
    for name, table, _, _ in reversed(INDEXES):
        op.drop_index(name, table, schema="app")
    op.execute(
        "ALTER TABLE app.verdicts ADD CONSTRAINT fk_verdicts_lease_id_leases "
        "FOREIGN KEY (lease_id) REFERENCES app.leases (id) NOT VALID"
    )
    op.execute(REFUSE_CHANGE.format(exception=""))
    op.drop_table("prune_cursors", schema="app")
    op.execute("DELETE FROM app.outbox WHERE endpoint <> 'main'")
    op.drop_column("outbox", "message_id", schema="app")
    op.drop_column("outbox", "endpoint", schema="app")
    op.drop_table("webhook_endpoints", schema="app")
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION IF EXISTS app.{name}() CASCADE")
    op.drop_index("ix_decisions_contradicting", "decisions", schema="app")
    op.drop_column("decisions", "contradicts", schema="app")
    for table in ("decision_medians", "flag_counts", "source_counts", "verdict_counts"):
        op.drop_table(table, schema="app")
