"""Add to verdicts how bytes became pixels, and whether the thresholds were measured so.

Revision: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. Constant defaults rewrite no row; they are right for every release before this one."""
    op.add_column(
        "verdicts",
        sa.Column("intake_version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        schema="app",
    )
    op.add_column(
        "verdicts",
        sa.Column("thresholds_hold", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        schema="app",
    )


def downgrade() -> None:
    """Undo. The views read the columns; `unlatent migrate` makes them again."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    for column in ("thresholds_hold", "intake_version"):
        op.drop_column("verdicts", column, schema="app")
