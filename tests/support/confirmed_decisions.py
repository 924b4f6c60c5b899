"""A site whose images are scored and confirmed, for the tests of retraining."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from PIL import Image
from sqlalchemy import text

from worker.ledger.interface import ImageFacts, Lease, Role, Upload, Verdict
from worker.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy import Engine

    from worker.storage.s3 import S3Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image, what a moderator says of it (None: nothing), and how the audit drew it."""

    pixels: NDArray[np.uint8]
    label: str | None = "real"
    source: str = "web"
    uploader: str | None = None
    moderator: str = "mia"
    audit_share: float | None = None


def confirm(
    engine: Engine,
    owner: Engine,
    storage: S3Storage,
    bucket: str,
    pictures: Sequence[Picture],
    *,
    model_version: str = "model-1",
) -> list[UUID]:
    """Upload pictures, score them as real and decide on them; returns their ids in order."""
    ledger = PostgresLedger(engine)
    uploads, facts = [], []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture.pixels).save(buffer, "PNG", compress_level=1)
        stored = storage.put(
            bucket, f"{uuid4().hex}.png", buffer.getvalue(), content_type="image/png"
        )
        uploads.append(
            Upload(
                bucket=bucket,
                key=stored.key,
                etag=stored.etag,
                source=picture.source,
                uploader=picture.uploader,
            )
        )
        facts.append(
            ImageFacts(
                sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
                size=stored.size,
                format="PNG",
                width=picture.pixels.shape[1],
                height=picture.pixels.shape[0],
                pdq=None,
            )
        )
    ids = [known.image_id for known in ledger.register(uploads)]
    verdicts = []
    for image_id, known in zip(ids, facts, strict=True):
        lease = ledger.lease(image_id, worker="w", duration=timedelta(minutes=2))
        assert isinstance(lease, Lease)
        verdicts.append(_verdict(image_id, lease, known, model_version))
    ledger.record(verdicts)
    _decide(owner, list(zip(ids, pictures, strict=True)))
    return ids


def _verdict(image_id: UUID, lease: Lease, facts: ImageFacts, model_version: str) -> Verdict:
    return Verdict(
        image_id=image_id,
        lease_id=lease.lease_id,
        facts=facts,
        model_version=model_version,
        role=Role.CHAMPION,
        score=0.2,
        label="real",
        branches={},
        decided_by="aligned",
        operating_point="fpr=0.01",
        prior=0.1,
        device="cpu",
        dtype="float32",
        timings_ms={},
    )


def _decide(owner: Engine, pictures: Sequence[tuple[UUID, Picture]]) -> None:
    decisions: list[dict[str, Any]] = [
        {"image": image_id, "moderator": picture.moderator, "label": picture.label}
        for image_id, picture in pictures
        if picture.label is not None
    ]
    audited = [
        {"image": image_id, "share": picture.audit_share}
        for image_id, picture in pictures
        if picture.audit_share is not None
    ]
    with owner.begin() as connection:
        if decisions:
            connection.execute(
                text(
                    "INSERT INTO app.decisions (image_id, moderator, decision, reason_code,"
                    " why_reviewed) VALUES (:image, :moderator, :label, 'seen', 'flagged')"
                ),
                decisions,
            )
        if audited:
            connection.execute(
                text(
                    "INSERT INTO app.reviews (image_id, source, queue, uncertainty, reach, rank_at,"
                    " audit_share) SELECT id, source, 'audit', 0, 1, now(), :share FROM app.images"
                    " WHERE id = :image"
                    " ON CONFLICT (image_id) DO UPDATE SET audit_share = excluded.audit_share"
                ),
                audited,
            )
