"""Let rows that are no longer needed be removed.

A verdict keeps the number of the lease in which it was given, and no longer the lease itself.

Revision: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

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
    """Apply."""
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
    op.drop_constraint("fk_verdicts_lease_id_leases", "verdicts", schema="app")
    # The tables are big: nobody waits for an index.
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_object_removals_removed_at",
            "object_removals",
            ["removed_at"],
            schema="app",
            if_not_exists=True,
            postgresql_concurrently=True,
        )
        op.create_index(
            "ix_outbox_ended",
            "outbox",
            [sa.text("coalesce(delivered_at, dead_at)")],
            schema="app",
            if_not_exists=True,
            postgresql_where=sa.text("delivered_at IS NOT NULL OR dead_at IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    """Undo. Verdicts whose leases are gone keep their numbers, which nothing checks."""
    op.drop_index("ix_outbox_ended", "outbox", schema="app")
    op.drop_index("ix_object_removals_removed_at", "object_removals", schema="app")
    op.execute(
        "ALTER TABLE app.verdicts ADD CONSTRAINT fk_verdicts_lease_id_leases "
        "FOREIGN KEY (lease_id) REFERENCES app.leases (id) NOT VALID"
    )
    op.execute(REFUSE_CHANGE.format(exception=""))
    op.drop_table("prune_cursors", schema="app")
