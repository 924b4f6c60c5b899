"""Note which request a client of `unlatent serve` sent under which key.

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


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "request_keys",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=True),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("source", "key", name=op.f("pk_request_keys")),
        schema="app",
    )
    op.create_index("ix_request_keys_at", "request_keys", ["at"], schema="app")


def downgrade() -> None:
    """Undo. What goes with the table's type, `unlatent migrate` makes again."""
    op.execute("DROP FUNCTION IF EXISTS app.note_request(text, text, bytea)")
    op.execute("DROP FUNCTION IF EXISTS app.note_request_image(text, text, uuid)")
    op.drop_table("request_keys", schema="app")
