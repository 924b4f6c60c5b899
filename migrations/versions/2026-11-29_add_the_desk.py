"""Add skips and second opinions, and mark what was judged without knowing the verdict.

The operator's role gets here what the worker's role loses in the next release: until then,
processes of the last release use it.

Revision: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

#: Name, table, columns and condition of each index of a table that is there already.
INDEXES = (
    ("ix_images_sha256_source", "images", ["sha256", "source"], "sha256 IS NOT NULL"),
    ("ix_images_uploader", "images", ["uploader", "created_at"], "uploader IS NOT NULL"),
    ("ix_decisions_moderator", "decisions", ["moderator", "id"], None),
    ("ix_reviews_open_counts", "reviews", ["source", "queue", "queued_at"], "closed_at IS NULL"),
    ("ix_regression_items_group_key", "regression_items", ["group_key"], None),
)

#: Until now it counted uploads of every source; `rank_at` is as app.rank_at computes it.
COUNT_WITHIN_SOURCE = """
    UPDATE app.reviews r
    SET reach = counted.reach,
        rank_at = r.queued_at - r.uncertainty * interval '4 hours'
            - ln(counted.reach) * interval '2 hours'
    FROM app.images i, LATERAL (
        SELECT greatest(count(*), 1) AS reach FROM (
            SELECT FROM app.images o
            WHERE o.sha256 = i.sha256 AND o.source = i.source LIMIT 1000
        ) uploads
    ) counted
    WHERE i.id = r.image_id AND r.closed_at IS NULL AND r.reach > counted.reach
"""


def upgrade() -> None:
    """Apply."""
    # The tables are big: nobody waits for an index. One that was cut short left an index that
    # serves nothing; it goes first. What can be tried again comes before what is done once.
    with op.get_context().autocommit_block():
        for name, table, columns, where in INDEXES:
            op.drop_index(name, table, schema="app", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                columns,
                schema="app",
                postgresql_where=None if where is None else sa.text(where),
                postgresql_concurrently=True,
            )
        op.execute(COUNT_WITHIN_SOURCE)
    op.create_table(
        "skips",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("moderator", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_skips_image_id_images")
        ),
        sa.PrimaryKeyConstraint("image_id", "moderator", name=op.f("pk_skips")),
        schema="app",
    )
    op.create_table(
        "opinions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("moderator", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("reason_code", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("verdict_id", sa.BigInteger(), nullable=True),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "decision IN ('real', 'generated', 'unsure')", name=op.f("ck_opinions_decision")
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["app.images.id"], name=op.f("fk_opinions_image_id_images")
        ),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["app.verdicts.id"], name=op.f("fk_opinions_verdict_id_verdicts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opinions")),
        schema="app",
    )
    op.create_index(
        "uq_opinions_image_id_moderator",
        "opinions",
        ["image_id", "moderator"],
        unique=True,
        schema="app",
    )
    op.create_index("ix_opinions_created_at", "opinions", ["created_at"], schema="app")
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON app.opinions "
        "FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change()"
    )
    op.add_column(
        "decisions",
        sa.Column("blind", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="app",
    )
    # The operator is a member of unlatent_app, too; these are what stays when that loses them.
    op.execute(
        """
        GRANT USAGE ON SCHEMA app TO unlatent_operator;
        GRANT SELECT, INSERT, UPDATE, DELETE ON app.moderators TO unlatent_operator;
        GRANT SELECT, INSERT ON app.policies TO unlatent_operator;
        """
    )


def downgrade() -> None:
    """Undo. The views read the columns; `unlatent migrate` makes them again."""
    op.execute("DROP SCHEMA moderation CASCADE")
    op.execute("CREATE SCHEMA moderation")
    for name, table, _, _ in INDEXES:
        op.drop_index(name, table, schema="app")
    op.drop_column("decisions", "blind", schema="app")
    op.drop_table("opinions", schema="app")
    op.drop_table("skips", schema="app")
