"""Store what a file says about its own origin, beside its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from worker.ledger.tables import Image
from worker.ledger.tables_moderation import Provenance

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from sqlalchemy import Connection

    from detection.intake.provenance import ProvenanceRecord


def store(connection: Connection, found: Mapping[UUID, ProvenanceRecord]) -> None:
    """Store the signals of images that were not erased; what was stored before stays."""
    if not found:
        return
    kept = connection.scalars(
        select(Image.id).where(Image.id.in_(found), Image.erased_at.is_(None)).order_by(Image.id)
    ).all()
    if kept:
        rows = [_row(image_id, found[image_id]) for image_id in kept]
        connection.execute(insert(Provenance).values(rows).on_conflict_do_nothing())


def _row(image_id: UUID, signals: ProvenanceRecord) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "exif_make": signals.exif.make,
        "exif_model": signals.exif.model,
        "exif_software": signals.exif.software,
        "exif_taken_at": signals.exif.taken_at,
        "iptc_digital_source_type": signals.iptc_digital_source_type,
        "iptc_asserts_ai": signals.iptc_asserts_ai,
        "c2pa_state": signals.c2pa.state,
        "c2pa_claim_generator": signals.c2pa.claim_generator,
        "c2pa_digital_source_types": list(signals.c2pa.digital_source_types),
        "c2pa_asserts_ai": signals.c2pa.asserts_ai,
        "c2pa_problems": list(signals.c2pa.problems),
    }
