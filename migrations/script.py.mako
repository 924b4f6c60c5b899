"""${message}.

Rolling deploys: the old code runs on this schema until its last pod is gone, and a rollback runs it
again. So a migration only adds: new columns are nullable or have a default, new constraints come
NOT VALID and are validated by a later migration, indexes of big tables are built CONCURRENTLY in a
migration of their own, and a column goes only in the release after the last code that reads it.

Revision: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Apply."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo."""
    ${downgrades if downgrades else "pass"}
