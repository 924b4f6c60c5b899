"""Index what the console asks: the uploads of one uploader, and what waits by queue and source.

Revision: 0020
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0013"
branch_labels = None
depends_on = None

INDEXES = (
    (
        "ix_images_uploader",
        "images",
        ["uploader", "created_at"],
        "uploader IS NOT NULL",
    ),
    (
        "ix_reviews_open_cell",
        "reviews",
        ["queue", "source", "queued_at"],
        "closed_at IS NULL",
    ),
)


def upgrade() -> None:
    """Apply."""
    # Nobody waits for an index; one whose build was cut short serves nothing and goes first.
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


def downgrade() -> None:
    """Undo."""
    for name, table, _, _ in INDEXES:
        op.drop_index(name, table, schema="app")
