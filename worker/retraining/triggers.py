"""Triggers of a training run: the calendar, enough newly confirmed images, or drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from worker.database.engine import transaction
from worker.retraining.candidates import count_new_decisions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from training.data.selection import CollectPolicy
    from worker.settings import Training


#: The newest readings name the champion: drift that a promotion has answered starts nothing.
_DRIFTED = text("""
    SELECT model_version, (at AT TIME ZONE 'UTC')::date AS day FROM app.drift_readings
    WHERE drifted AND at > clock_timestamp() - interval '1 day' AND model_version = (
        SELECT model_version FROM app.drift_readings ORDER BY id DESC LIMIT 1
    )
    ORDER BY id DESC LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class Slot:
    """A scheduling slot; its deterministic name makes triggers in the same slot one run."""

    slot: str
    trigger: str


def due_slots(engine: Engine, settings: Training, policy: CollectPolicy) -> Iterator[Slot]:
    """Name the slots that are due, by the database's clock; each is good for one run."""
    if settings.every_s is not None:
        with transaction(engine) as connection:
            now_s = float(
                connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8"))
            )
        yield Slot(f"calendar:{settings.every_s:g}:{int(now_s // settings.every_s)}", "calendar")
    if settings.min_new_images is not None:
        images, newest = count_new_decisions(engine, policy)
        if images >= settings.min_new_images:
            yield Slot(f"confirmed:{newest}", "confirmed_images")
    if settings.on_drift:
        with transaction(engine) as connection:
            drifted = connection.execute(_DRIFTED).one_or_none()
        if drifted is not None:
            yield Slot(f"drift:{drifted.model_version}:{drifted.day}", "drift")
