"""Add to verdicts which frame of an animation decided.

Revision: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. Every release before this one judged the first frame, which is frame 0."""
    op.add_column(
        "verdicts",
        sa.Column("frame", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        schema="app",
    )


def downgrade() -> None:
    """Undo. The views read the column; `unlatent migrate` makes them again."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    op.drop_column("verdicts", "frame", schema="app")
