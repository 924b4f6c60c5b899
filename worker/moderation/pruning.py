"""Rows that are no longer needed: sent webhooks, closed leases, removals, audited states.

Beat asks for it every minute. A run takes batch after batch, each in a transaction of its own,
until nothing is left or half of the time to the next run is over: what is due after an outage, or
after a shorter limit, goes within hours and holds nobody up.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text

from worker.database.engine import transaction

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.settings import Retention

_log = structlog.get_logger(__name__)

#: Rows that one statement looks at: well under a second of work.
BATCH = 5000


def kept_days(settings: Retention) -> dict[str, float | None]:
    """Return for how many days rows of each kind are kept; None is for ever."""
    return {
        "outbox": settings.outbox_days,
        "leases": settings.leases_days,
        "removals": settings.removals_days,
        "audit": settings.audit_days,
    }


def prune(engine: Engine, settings: Retention) -> dict[str, int]:
    """Remove rows that are older than the database was told to keep; return how many of each kind.

    `unlatent migrate` tells it, out of the settings of retention. Raises `LedgerUnavailable`.
    """
    left = list(kept_days(settings))
    removed = dict.fromkeys(left, 0)
    ends = time.monotonic() + settings.prune_every_s / 2
    while left and time.monotonic() < ends:
        # In turns, so that one kind with much to do does not keep the others waiting.
        for kind in list(left):
            with transaction(engine) as connection:
                done = connection.execute(
                    text("SELECT * FROM app.prune(:kind, :most)"), {"kind": kind, "most": BATCH}
                ).one()
            removed[kind] += done.removed
            if done.looked < BATCH:
                left.remove(kind)
    if any(removed.values()):
        _log.info("rows_pruned", **removed)
    return removed
