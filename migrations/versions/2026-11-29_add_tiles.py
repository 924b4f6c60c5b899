"""Add to verdicts what the aligned branch said of each tile.

Revision: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. What earlier verdicts' tiles said was kept nowhere: theirs are empty."""
    op.add_column("verdicts", sa.Column("tiles", JSONB(), nullable=True), schema="app")


def downgrade() -> None:
    """Undo. The views read the column; `unlatent migrate` makes them again."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    op.drop_column("verdicts", "tiles", schema="app")
