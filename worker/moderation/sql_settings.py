"""Settings that SQL needs, written into the database when it is migrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from worker.database.engine import connect
from worker.ledger.tables_moderation import ConfigEntry
from worker.moderation import pruning
from worker.moderation.webhooks import MAIN

if TYPE_CHECKING:
    from worker.settings import Settings


def write_sql_settings(owner_url: str, settings: Settings) -> None:
    """Make `app.config` say what the settings say; only the owner may write there."""
    moderation, webhooks = settings.moderation, settings.webhooks
    names = [MAIN] * (webhooks.url is not None) + list(webhooks.endpoints)
    wanted = {
        "image_url": moderation.image_url,
        "evidence_url": moderation.evidence_url,
        "claim_minutes": str(moderation.claim_minutes),
        "originals_days": _text(settings.retention.originals_days),
        "evidence_days": _text(settings.retention.evidence_days),
        **{
            f"{kind}_days": _text(days)
            for kind, days in pruning.kept_days(settings.retention).items()
        },
        "webhook_topics": ",".join(webhooks.topics) if names else None,
        "webhook_endpoints": ",".join(names) or None,
    }
    engine = connect(owner_url, application_name="unlatent-migrate")
    with engine.begin() as connection:
        for name, value in wanted.items():
            if value is None:
                connection.execute(delete(ConfigEntry).where(ConfigEntry.name == name))
                continue
            added = insert(ConfigEntry).values(name=name, value=value)
            connection.execute(
                added.on_conflict_do_update(index_elements=["name"], set_={"value": value})
            )
    engine.dispose()


def _text(number: float | None) -> str | None:
    return None if number is None else str(number)
