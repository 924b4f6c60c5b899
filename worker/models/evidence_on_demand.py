"""Renders evidence for a verdict that was stored without it.

The verdict does not change: only maps and tiles are computed again, by the same model version,
from the same bytes, which are decoded in a process of its own as they were for the verdict.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import select

from detection.errors import SettingsError, UnlatentError
from detection.evidence import make_evidence
from detection.score import decide
from worker.database.engine import transaction
from worker.decoding.pool import DecodePool
from worker.ledger.interface import Role
from worker.ledger.postgres import PostgresLedger
from worker.ledger.statements import FACTS, verdict_of
from worker.ledger.tables import Image, VerdictRow
from worker.models.loading import load_detector, settings_for_model
from worker.models.registry import ModelsRegistry, UnknownModel
from worker.scoring.evidence import evidence_bucket, score_of, store_evidence

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

    from worker.ledger.interface import Verdict
    from worker.scoring.interface import Scorer
    from worker.settings import Intake, Settings
    from worker.storage.interface import Storage


class EvidenceUnavailable(UnlatentError):
    """The image has no verdict that evidence could be made for."""


def render_evidence(image_id: UUID, *, settings: Settings, engine: Engine, storage: Storage) -> str:
    """Return the address of the evidence of an image's current verdict, made now if need be.

    Raises `EvidenceUnavailable`, `SettingsError` when no bucket is set or the model version that
    judged is not at hand, and what storage and decoding raise when the image is not what it was.
    """
    bucket = evidence_bucket(settings)
    if bucket is None:
        raise SettingsError("UNLATENT_MODERATION__EVIDENCE_BUCKET names no bucket to keep it in")
    newest = (
        select(
            VerdictRow.__table__,
            *FACTS,
            Image.bucket,
            Image.key,
            Image.version_id,
            Image.etag,
            Image.erased_at,
            Image.object_removed_at,
        )
        .join(Image, Image.id == VerdictRow.image_id)
        .where(VerdictRow.image_id == image_id, VerdictRow.role == Role.CHAMPION)
        .order_by(VerdictRow.scored_at.desc(), VerdictRow.id.desc())
        .limit(1)
    )
    with transaction(engine) as connection:
        row = connection.execute(newest).one_or_none()
    if row is None:
        raise EvidenceUnavailable(f"image {image_id} has no verdict of a champion")
    verdict = verdict_of(row)
    if verdict.evidence_uri is not None:
        return verdict.evidence_uri
    if row.erased_at is not None or row.object_removed_at is not None:
        raise EvidenceUnavailable(f"the picture of image {image_id} is deleted")
    data = storage.fetch(
        row.bucket,
        row.key,
        version_id=row.version_id,
        etag=row.etag,
        max_bytes=settings.intake.max_bytes,
    )
    scorer = _scorer(verdict.model_version, settings, engine)
    files = _make(verdict, data, scorer, settings.intake)
    uri = store_evidence(
        files, verdict, storage=storage, ledger=PostgresLedger(engine), bucket=bucket
    )
    if uri is None:
        raise EvidenceUnavailable(f"image {image_id} is to be erased")
    return uri


def _make(verdict: Verdict, data: bytes, scorer: Scorer, intake: Intake) -> dict[str, bytes]:
    alone = intake.model_copy(update={"processes": 1})
    with (
        closing(DecodePool(alone)) as pool,
        pool.decode(data, wait_s=intake.timeout_s) as decoded,
    ):
        score = decide(decoded.sample, scorer.score([one.pixels for one in decoded.sample]))
        again = replace(
            verdict,
            error_map=score.error_map,
            contributions=score.contributions,
            tiles=score.tiles,
            outside=score.outside,
            distance=score.distance,
            frame=score.frame,
        )
        return make_evidence(decoded.frame(score.frame), score_of(again))


def _scorer(model_version: str, settings: Settings, engine: Engine) -> Scorer:
    from detection.bundle import load_bundle  # brings torch, which stored evidence does not need

    try:
        chosen = settings_for_model(settings, ModelsRegistry(engine).find(model_version))
    except UnknownModel:
        chosen = settings.scoring
    if load_bundle(chosen.bundle).model_version != model_version:
        raise SettingsError(
            f"model version {model_version} judged the image, but is neither registered nor what "
            f"UNLATENT_SCORING__BUNDLE names ({settings.scoring.bundle})"
        )
    return load_detector(chosen)
