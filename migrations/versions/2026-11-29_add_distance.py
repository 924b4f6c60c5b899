"""Add to verdicts how far they lie from the point of accusation.

Revision: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. What the point was for earlier verdicts stands in their bundles: theirs are empty."""
    op.add_column("verdicts", sa.Column("distance", sa.Double(), nullable=True), schema="app")


def downgrade() -> None:
    """Undo. The views read the column; `unlatent migrate` makes them again."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    op.drop_column("verdicts", "distance", schema="app")
