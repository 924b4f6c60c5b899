"""What makes a run due: the calendar, or enough newly confirmed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from worker.ledger_postgres import transaction
from worker.retraining.candidates import fresh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from training.collect import CollectPolicy
    from worker.settings import Training


@dataclass(frozen=True, slots=True)
class Due:
    """A slot that a run may start in; whoever asks in the same slot names it the same."""

    slot: str
    trigger: str


def due(engine: Engine, settings: Training, policy: CollectPolicy) -> Iterator[Due]:
    """Name the slots that are due, by the database's clock; each is good for one run."""
    if settings.every_s is not None:
        with transaction(engine) as connection:
            now_s = float(
                connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8"))
            )
        yield Due(f"calendar:{settings.every_s:g}:{int(now_s // settings.every_s)}", "calendar")
    if settings.min_new_images is not None:
        images, newest = fresh(engine, policy)
        if images >= settings.min_new_images:
            yield Due(f"confirmed:{newest}", "confirmed_images")
