"""Promotion by the schedule: a challenger that passed the gate and served its time in shadow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text

from worker.database.engine import transaction
from worker.models.registry import GateNotPassed
from worker.models.shadow import agreement

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.models.registry import ModelsRegistry
    from worker.settings import Training

_log = structlog.get_logger(__name__)

ACTOR = "schedule"


def promote_when_due(engine: Engine, registry: ModelsRegistry, settings: Training) -> str | None:
    """Make the challenger in shadow champion when it has been there long enough; return its digest.

    It must have judged enough images beside the champion. One that somebody put into shadow
    although the gate refused it is left to that person.
    """
    active = registry.active()
    shadow, since = active.shadow, active.shadow_since
    if settings.promote_after_s is None or shadow is None or since is None:
        return None
    with transaction(engine) as connection:
        seconds = text("SELECT extract(epoch FROM clock_timestamp() - :since)::float8")
        served_s = connection.scalar(seconds, {"since": since}) or 0.0
    found = agreement(engine, shadow.digest, since=since)
    if served_s < settings.promote_after_s or found.images < settings.promote_min_images:
        return None
    reason = (
        f"{served_s:.0f} s in shadow, {found.images} images judged beside the champion,"
        f" {found.disagreements} labelled otherwise"
    )
    try:
        registry.promote(shadow.digest, actor=ACTOR, reason=reason)
    except GateNotPassed as error:
        _log.warning("promotion_refused", model_version=shadow.digest, error=str(error))
        return None
    _log.info("model_promoted", model_version=shadow.digest, reason=reason)
    return shadow.digest
