"""Send webhooks to several endpoints, under random ids.

Revision: 0016
Revises: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "webhook_endpoints",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("switched_off_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_webhook_endpoints")),
        schema="app",
    )
    op.execute("GRANT SELECT, INSERT, UPDATE ON app.webhook_endpoints TO unlatent_app")
    op.add_column(
        "outbox",
        sa.Column("endpoint", sa.Text(), server_default=sa.text("'main'"), nullable=False),
        schema="app",
    )
    op.add_column("outbox", sa.Column("message_id", sa.Text(), nullable=True), schema="app")


def downgrade() -> None:
    """Undo. The earlier release knows one endpoint: what waits for others goes."""
    op.execute("DELETE FROM app.outbox WHERE endpoint <> 'main'")
    op.drop_column("outbox", "message_id", schema="app")
    op.drop_column("outbox", "endpoint", schema="app")
    op.drop_table("webhook_endpoints", schema="app")
