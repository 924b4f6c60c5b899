"""What stands for an earlier release: today's bridge and worker without what came later.

A clone may have no history, so there is no earlier code to run. Their statements are today's, less
the columns and tables that the ledger did not begin with; that they do their work on the ledger's
first schema shows that nothing later is left in them.
"""

from __future__ import annotations

from worker.ledger import provenance, tables
from worker.models import registry
from worker.monitoring.database_gauges import DatabaseCollector

#: The migration that created the ledger, and its release.
REVISION = "0001"
#: Columns of their tables that came later.
LATER = {
    tables.Image: ("object_removed_at", "erased_at"),
    tables.VerdictRow: ("tier", "policy_id", "held"),
}


def forget_what_came_later() -> None:
    """Make this process one of that release."""
    for model, names in LATER.items():
        columns = model.__table__._columns
        for name in names:
            columns.remove(columns[name])
    DatabaseCollector.read = lambda _: None  # type: ignore[method-assign]  # no moderation yet
    provenance.store_provenance = lambda _connection, _found: None
    registry._in_shadow = lambda _connection: (None, None)
