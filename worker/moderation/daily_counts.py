"""Counts by day and source; triggers keep them right, beat keeps them short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from worker.database.engine import transaction

if TYPE_CHECKING:
    from sqlalchemy import Engine


def keep_counts(engine: Engine) -> int:
    """Merge what was counted since the last time, and close days; return how many rows merged.

    Raises `LedgerUnavailable`.
    """
    with transaction(engine) as connection:
        merged: int = connection.execute(text("SELECT app.keep_counts()")).scalar_one()
    return merged
