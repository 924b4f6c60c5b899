"""Settings that SQL needs, written into the database when it is migrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from worker.database.engine import connect
from worker.ledger.tables_moderation import ConfigEntry

if TYPE_CHECKING:
    from worker.settings import Settings


def write_sql_settings(owner_url: str, settings: Settings) -> None:
    """Make `app.config` say what the settings say; only the owner may write there."""
    moderation = settings.moderation
    wanted = {
        "image_url": moderation.image_url,
        "evidence_url": moderation.evidence_url,
        "claim_minutes": str(moderation.claim_minutes),
        "originals_days": _text(settings.retention.originals_days),
        "evidence_days": _text(settings.retention.evidence_days),
        "webhook_topics": ",".join(settings.webhooks.topics) if settings.webhooks.url else None,
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
