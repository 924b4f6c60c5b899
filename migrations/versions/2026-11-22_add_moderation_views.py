"""Add schema moderation, its reason codes and the first policy.

Its views, functions and rules are no part of any revision: worker/moderation/sql_files.py installs
them once the schema is at the newest one, whose columns they read.

Revision: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

#: Words that a person who uploaded an image can be told.
REASONS = {
    "generated_artefacts": ("generated", "The image shows traces that image generators leave."),
    "generated_declared": ("generated", "The file or its uploader says that it was generated."),
    "generated_implausible": ("generated", "The image shows what no camera could have seen."),
    "real_original": ("real", "The original camera file was seen."),
    "real_edited": ("real", "A photograph, retouched or compressed, but not generated."),
    "real_plausible": ("real", "Nothing in the image speaks against a photograph."),
    "unsure_quality": ("unsure", "The image is too small or too damaged to tell."),
    "unsure_mixed": ("unsure", "Parts look generated and parts photographed."),
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "near_duplicate_keys",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("chunks", sa.ARRAY(sa.Integer()), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_near_duplicate_keys_image_id_images")
        ),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_near_duplicate_keys")),
        schema="app",
    )
    op.create_index(
        "ix_near_duplicate_keys_chunks",
        "near_duplicate_keys",
        ["chunks"],
        schema="app",
        postgresql_using="gin",
    )
    op.execute("CREATE SCHEMA moderation")
    reasons = sa.table(
        "reason_codes", sa.column("code"), sa.column("decision"), sa.column("words"), schema="app"
    )
    op.bulk_insert(
        reasons,
        [
            {"code": code, "decision": decision, "words": words}
            for code, (decision, words) in REASONS.items()
        ],
    )
    op.execute(
        "INSERT INTO app.policies (review, flag, flag_high, reason) "
        "VALUES (0.5, 0.9, 0.98, 'the policy that the schema starts with')"
    )
    # The rule that enters policies into the audit is not there yet.
    op.execute(
        "INSERT INTO app.audit_log (action, reason, detail) "
        "SELECT 'policy', p.reason, to_jsonb(p) - 'reason' FROM app.policies p"
    )


def downgrade() -> None:
    """Undo."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute(
        """
        DO $$
        DECLARE
            ours regprocedure;
        BEGIN
            FOR ours IN
                SELECT oid::regprocedure FROM pg_proc
                WHERE pronamespace = 'app'::regnamespace AND proname NOT IN
                    ('audit_champion', 'audit_image_state', 'refuse_change')
            LOOP
                -- Triggers go with their functions; some functions went with others.
                EXECUTE 'DROP FUNCTION IF EXISTS ' || ours || ' CASCADE';
            END LOOP;
        END
        $$
        """
    )
    op.drop_table("near_duplicate_keys", schema="app")
