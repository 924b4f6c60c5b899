"""Add what files declare of their origin, who signed them, and why an image cannot be judged.

Rows of earlier releases keep their words: `valid`, `invalid` and `unreadable` stay allowed, because
an earlier release may write beside this one, and `moderation.c2pa_state` translates them.

Revision: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_OLD_STATES = "'absent', 'valid', 'invalid', 'unreadable'"
_STATES = "'absent', 'trusted', 'well_formed', 'broken', 'valid', 'invalid', 'unreadable'"
_COLUMNS = (
    sa.Column("declares_ai", sa.Boolean(), nullable=True),
    sa.Column("declared_generator", sa.Text(), nullable=True),
    sa.Column("declared_where", sa.ARRAY(sa.Text()), nullable=True),
    sa.Column("c2pa_signer", sa.Text(), nullable=True),
    sa.Column("c2pa_signer_state", sa.Text(), nullable=True),
    sa.Column("c2pa_signed_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("c2pa_ingredients", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
)


def upgrade() -> None:
    """Apply."""
    # Verdicts first: a worker that stores one holds that table when it comes to the other.
    op.add_column(
        "verdicts", sa.Column("inapplicable_reason", sa.Text(), nullable=True), schema="app"
    )
    for column in _COLUMNS:
        op.add_column("provenance", column, schema="app")
    _allow("c2pa_state", _STATES)
    _allow("c2pa_signer_state", "'trusted', 'unknown', 'untrusted', 'expired'")


def downgrade() -> None:
    """Undo; the new states become the old words that come nearest."""
    # Views that read the columns go with them; the next upgrade installs all of them again.
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    op.drop_column("verdicts", "inapplicable_reason", schema="app")
    for column in reversed(_COLUMNS):
        op.drop_column("provenance", column.name, schema="app")
    op.execute("ALTER TABLE app.provenance DROP CONSTRAINT ck_provenance_c2pa_state")
    op.execute(
        "UPDATE app.provenance SET c2pa_state = CASE c2pa_state WHEN 'broken' THEN 'invalid' "
        "ELSE 'valid' END WHERE c2pa_state IN ('trusted', 'well_formed', 'broken')"
    )
    _allow("c2pa_state", _OLD_STATES)


def _allow(column: str, words: str) -> None:
    # Not validated under the lock that keeps everybody out: every row meets the condition.
    name = f"ck_provenance_{column}"
    op.execute(
        f"ALTER TABLE app.provenance DROP CONSTRAINT IF EXISTS {name},"
        f" ADD CONSTRAINT {name} CHECK ({column} IN ({words})) NOT VALID"
    )
    op.execute(f"ALTER TABLE app.provenance VALIDATE CONSTRAINT {name}")
