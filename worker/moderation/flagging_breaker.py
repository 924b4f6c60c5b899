"""The circuit breaker of automatic flagging; the band and the window are the policy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text

from worker.database.engine import transaction

if TYPE_CHECKING:
    from sqlalchemy import Engine

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTrip:
    """A source whose share of flags, over `images` verdicts, left the band of its policy."""

    source: str
    flag_share: float
    images: int


def check_breakers(engine: Engine) -> list[BreakerTrip]:
    """Stop automatic flagging where the share of flags left its band; beat asks for it.

    Each trip is logged as an error (the alert), audited and sent as `breaker.opened`. Until a
    person resumes, verdicts of that source that would flag are reviewed instead. Raises
    `LedgerUnavailable`.
    """
    with transaction(engine) as connection:
        rows = connection.execute(text("SELECT * FROM app.check_breakers()")).all()
    trips = [
        BreakerTrip(source=row.tripped, flag_share=row.tripped_share, images=row.counted)
        for row in rows
    ]
    for trip in trips:
        _log.error(
            "flagging_stopped",
            source=trip.source,
            flag_share=trip.flag_share,
            images=trip.images,
        )
    return trips


def resume_flagging(engine: Engine, source: str, *, reason: str, by: str) -> bool:
    """Let verdicts of the source flag again; return False when nothing was stopped."""
    with engine.begin() as connection:
        resumed = connection.scalar(
            text("SELECT app.resume_flagging(:source, :reason, :by)"),
            {"source": source, "reason": reason, "by": by},
        )
    return bool(resumed)
