"""Mark originals that retention is about to remove, and index what it has still to look at.

Revision: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

#: Name, table, columns and condition of each index.
INDEXES = (
    (
        "ix_images_kept",
        "images",
        ["created_at", "id"],
        "object_removed_at IS NULL AND erased_at IS NULL AND state <> 'pending'",
    ),
    ("ix_verdicts_evidence", "verdicts", ["scored_at", "id"], "evidence_uri IS NOT NULL"),
)


def upgrade() -> None:
    """Apply."""
    # The tables are big: nobody waits for an index, and outside a transaction no time-out of ours
    # cuts its build short. One that was cut short left an index that serves nothing; it goes first.
    # What can be tried again comes before what is done once.
    with op.get_context().autocommit_block():
        for name, table, columns, where in INDEXES:
            op.drop_index(name, table, schema="app", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                columns,
                schema="app",
                postgresql_where=sa.text(where),
                postgresql_concurrently=True,
            )
    for column in ("expiring_at", "restored_at"):
        op.add_column(
            "images", sa.Column(column, sa.DateTime(timezone=True), nullable=True), schema="app"
        )


def downgrade() -> None:
    """Undo."""
    # Views that read the columns go with them; the next upgrade installs all of them again.
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    for name, table, _, _ in INDEXES:
        op.drop_index(name, table, schema="app")
    for column in ("restored_at", "expiring_at"):
        op.drop_column("images", column, schema="app")
