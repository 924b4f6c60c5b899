"""Stores the provenance that a file states, beside its verdict."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql import insert

from worker.ledger.tables_moderation import Provenance

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from sqlalchemy import Connection

    from detection.intake.provenance import ProvenanceRecord


def store_provenance(connection: Connection, found: Mapping[UUID, ProvenanceRecord]) -> None:
    """Store the provenance of images whose rows are locked; what was stored before stays."""
    if found:
        rows = [_row(image_id, record) for image_id, record in found.items()]
        connection.execute(insert(Provenance).values(rows).on_conflict_do_nothing())


def _row(image_id: UUID, record: ProvenanceRecord) -> dict[str, Any]:
    signed_at = record.c2pa.signed_at
    return {
        "image_id": image_id,
        "exif_make": record.exif.make,
        "exif_model": record.exif.model,
        "exif_software": record.exif.software,
        "exif_taken_at": record.exif.taken_at,
        "iptc_digital_source_type": record.iptc_digital_source_type,
        "iptc_asserts_ai": record.iptc_asserts_ai,
        "c2pa_state": record.c2pa.state,
        "c2pa_claim_generator": record.c2pa.claim_generator,
        "c2pa_digital_source_types": list(record.c2pa.digital_source_types),
        "c2pa_asserts_ai": record.c2pa.asserts_ai,
        "c2pa_problems": list(record.c2pa.problems),
        "declares_ai": record.declares_ai,
        "declared_generator": record.declared_generator,
        "declared_where": list(record.declared_where),
        "c2pa_signer": record.c2pa.signer,
        "c2pa_signer_state": record.c2pa.signer_state,
        "c2pa_signed_at": signed_at and datetime.fromisoformat(signed_at),
        "c2pa_ingredients": [asdict(ingredient) for ingredient in record.c2pa.ingredients],
    }
