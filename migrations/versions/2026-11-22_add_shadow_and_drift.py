"""Add the pointer to the challenger in shadow, and the readings of drift.

Revision: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

AUDIT_SHADOW = """
CREATE FUNCTION app.audit_shadow() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, app, pg_temp AS $$
BEGIN
    INSERT INTO app.audit_log (actor, action, to_state, reason, detail)
    VALUES (NEW.actor, CASE WHEN NEW.model_version IS NULL THEN 'end_shadow' ELSE 'shadow' END,
            NEW.model_version, NEW.reason, jsonb_build_object('session', SESSION_USER));
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION app.audit_shadow() FROM PUBLIC;
CREATE TRIGGER audit_shadow AFTER INSERT ON app.shadow
    FOR EACH ROW EXECUTE FUNCTION app.audit_shadow();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON app.shadow
    FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change();
"""


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "shadow",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["model_version"],
            ["app.model_versions.digest"],
            name=op.f("fk_shadow_model_version_model_versions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow")),
        schema="app",
    )
    op.execute(AUDIT_SHADOW)
    op.create_table(
        "drift_readings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("reference_images", sa.BigInteger(), nullable=False),
        sa.Column("psi", sa.Double(), nullable=True),
        sa.Column("ks", sa.Double(), nullable=True),
        sa.Column("unsure", sa.Double(), nullable=False),
        sa.Column("reference_unsure", sa.Double(), nullable=True),
        sa.Column("decisions", sa.BigInteger(), nullable=False),
        sa.Column("overturned", sa.BigInteger(), nullable=False),
        sa.Column("drifted", sa.Boolean(), nullable=False),
        sa.CheckConstraint("(psi IS NULL) = (ks IS NULL)", name=op.f("ck_drift_readings_compared")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drift_readings")),
        schema="app",
    )
    op.create_index(
        "ix_drift_readings_source", "drift_readings", ["source", "id"], unique=False, schema="app"
    )
    for table in ("shadow", "drift_readings"):
        op.execute(f"GRANT SELECT, INSERT ON app.{table} TO unlatent_app")


def downgrade() -> None:
    """Undo."""
    op.drop_table("drift_readings", schema="app")
    op.drop_table("shadow", schema="app")
    op.execute("DROP FUNCTION app.audit_shadow()")
