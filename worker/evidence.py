"""Evidence for moderators: the error map over a small copy of the picture, kept beside the verdict.

Drawn for verdicts that say `generated` or `unsure`, once they are stored: a picture that cannot be
drawn or kept is logged and counted, and never costs an image its verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import structlog
from PIL import Image

from detection.errors import SettingsError
from detection.evidence import overlay
from detection.score import Label, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.ledger import Ledger, Verdict
    from worker.metrics import Metrics
    from worker.settings import Settings
    from worker.storage import Storage

_log = structlog.get_logger(__name__)

#: Longest side of the picture, in pixels: enough to see a map of 32 x 32 cells by.
MAX_SIDE = 768


class EvidenceKeeper:
    """Draws evidence, puts it into a bucket and notes its address."""

    def __init__(self, *, storage: Storage, ledger: Ledger, metrics: Metrics, bucket: str) -> None:
        self._storage, self._ledger, self._metrics = storage, ledger, metrics
        self._bucket = bucket

    def keep(self, verdict: Verdict, pixels: NDArray[np.uint8]) -> None:
        """Keep the evidence of a stored verdict on an image, uint8 (H, W, 3); raises nothing."""
        if verdict.label == Label.REAL or verdict.error_map is None:
            return
        try:
            outcome = self._keep(verdict, pixels)
        except Exception as error:  # noqa: BLE001 - the verdict stands without its picture
            outcome = "failed"
            _log.warning("evidence_failed", error=f"{type(error).__name__}: {error}")
        self._metrics.evidence.labels(outcome).inc()

    def _keep(self, verdict: Verdict, pixels: NDArray[np.uint8]) -> str:
        key = f"evidence/{verdict.image_id}/{verdict.model_version}.png"
        picture = draw(verdict, pixels)
        self._storage.put(self._bucket, key, picture, content_type="image/png")
        uri = f"s3://{self._bucket}/{key}"
        if self._ledger.attach_evidence(
            verdict.image_id, model_version=verdict.model_version, uri=uri
        ):
            return "kept"
        self._storage.delete(self._bucket, key)
        return "erased"


def draw(verdict: Verdict, pixels: NDArray[np.uint8]) -> bytes:
    """Draw a verdict over its image, uint8 (H, W, 3), as a PNG of at most `MAX_SIDE` pixels."""
    small = Image.fromarray(pixels)
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    score = Score(
        probability=verdict.score,
        label=Label(verdict.label),
        branches=verdict.branches,
        decided_by=verdict.decided_by,
        operating_point=verdict.operating_point,
        prior=verdict.prior,
        error_map=verdict.error_map,
    )
    return overlay(np.asarray(small), score)


def evidence_keeper(
    settings: Settings, *, storage: Storage, ledger: Ledger, metrics: Metrics
) -> EvidenceKeeper | None:
    """Build the keeper that the settings ask for, if they do.

    Raises `SettingsError` when the bucket is not one that may be written to.
    """
    bucket = settings.moderation.evidence_bucket
    if bucket is None:
        return None
    if bucket not in settings.s3.buckets:
        raise SettingsError(
            f"UNLATENT_MODERATION__EVIDENCE_BUCKET: {bucket} is not in UNLATENT_S3__BUCKETS"
        )
    return EvidenceKeeper(storage=storage, ledger=ledger, metrics=metrics, bucket=bucket)
