"""Let leases be closed as unreadable: storage failed with this object while it gave others.

Revision: 0007
Revises: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BEFORE = "'scored', 'failed', 'superseded', 'retry', 'released', 'death'"
SINCE = "'scored', 'failed', 'superseded', 'retry', 'released', 'unreadable', 'death'"


def upgrade() -> None:
    """Apply."""
    _allow(SINCE)


def downgrade() -> None:
    """Undo."""
    op.execute("UPDATE app.leases SET outcome = 'retry' WHERE outcome = 'unreadable'")
    _allow(BEFORE)


def _allow(outcomes: str) -> None:
    # Not validated under the lock that keeps everybody out: every row meets the wider condition,
    # and after a downgrade was just made to meet the narrower one.
    op.execute(
        "ALTER TABLE app.leases DROP CONSTRAINT ck_leases_outcome,"
        f" ADD CONSTRAINT ck_leases_outcome CHECK (outcome IN ({outcomes})) NOT VALID"
    )
    op.execute("ALTER TABLE app.leases VALIDATE CONSTRAINT ck_leases_outcome")
