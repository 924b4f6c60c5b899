"""Keeps evidence pictures in a bucket, beside verdicts that a person will look at.

Kept for verdicts that say `generated` or `unsure` and for whatever else waits for a person, the
random audit for one, once the verdict is stored: a picture that cannot be drawn or kept is logged
and counted, and never costs an image its verdict. Every image has a picture of its own, also where
its verdict was taken over from another's: each goes with its image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import structlog
from PIL import Image

from detection.errors import SettingsError
from detection.evidence import overlay
from detection.score import Label, Score
from worker.storage.interface import parse_uri, purge

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from numpy.typing import NDArray

    from worker.ledger.interface import Ledger, Verdict
    from worker.settings import Settings
    from worker.storage.interface import Storage
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

#: Longest side of the picture, in pixels: enough to see a map of 32 x 32 cells by.
MAX_SIDE = 768
#: Larger than any picture of that size with its caption.
MAX_BYTES = 8 * 2**20


class EvidenceKeeper:
    """Keeps evidence in a bucket, beside the verdicts that somebody will look at."""

    def __init__(self, *, storage: Storage, ledger: Ledger, metrics: Metrics, bucket: str) -> None:
        self._storage, self._ledger, self._metrics = storage, ledger, metrics
        self._bucket = bucket

    def keep(self, verdict: Verdict, pixels: NDArray[np.uint8]) -> None:
        """Draw the evidence of a stored verdict on an image, uint8 (H, W, 3); raises nothing."""
        if verdict.error_map is not None:
            self._keep(verdict, lambda: draw_evidence(verdict, pixels))

    def copy(self, verdict: Verdict, original: Verdict) -> None:
        """Give a stored verdict a copy of the evidence of the one it was taken over from."""
        if original.evidence_uri is not None:
            bucket, key = parse_uri(original.evidence_uri)
            self._keep(verdict, lambda: self._storage.fetch(bucket, key, max_bytes=MAX_BYTES))

    def _keep(self, verdict: Verdict, picture: Callable[[], bytes]) -> None:
        try:
            if verdict.label == Label.REAL and not self._ledger.in_review(verdict.image_id):
                return
            uri = store_evidence(
                picture(),
                verdict,
                storage=self._storage,
                ledger=self._ledger,
                bucket=self._bucket,
            )
            outcome = "erased" if uri is None else "kept"
        except Exception as error:  # noqa: BLE001 - the verdict stands without its picture
            outcome = "failed"
            _log.warning("evidence_failed", error=f"{type(error).__name__}: {error}")
        self._metrics.evidence.labels(outcome).inc()


def store_evidence(
    picture: bytes, verdict: Verdict, *, storage: Storage, ledger: Ledger, bucket: str
) -> str | None:
    """Put a verdict's picture, a PNG, into a bucket and note its address, which is returned.

    None when the image is to be erased: the picture is taken back.
    """
    key = evidence_key(verdict.image_id, verdict.model_version)
    storage.put(bucket, key, picture, content_type="image/png")
    uri = f"s3://{bucket}/{key}"
    if ledger.attach_evidence(verdict.image_id, model_version=verdict.model_version, uri=uri):
        return uri
    purge(storage, bucket, key)
    return None


def evidence_key(image_id: UUID, model_version: str) -> str:
    """Return the key of the picture beside the verdict of a model version on an image."""
    return f"evidence/{image_id}/{model_version}.png"


def draw_evidence(verdict: Verdict, pixels: NDArray[np.uint8]) -> bytes:
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
        outside=verdict.outside,
        distance=verdict.distance,
    )
    return overlay(np.asarray(small), score)


def evidence_bucket(settings: Settings) -> str | None:
    """Return the bucket that evidence is kept in, if it is kept.

    Raises `SettingsError` when the bucket is not one that may be written to.
    """
    bucket = settings.moderation.evidence_bucket
    if bucket is not None and bucket not in settings.s3.buckets:
        raise SettingsError(
            f"UNLATENT_MODERATION__EVIDENCE_BUCKET: {bucket} is not in UNLATENT_S3__BUCKETS"
        )
    return bucket


def evidence_keeper(
    settings: Settings, *, storage: Storage, ledger: Ledger, metrics: Metrics
) -> EvidenceKeeper | None:
    """Build the keeper that the settings ask for, if they do; raises as `evidence_bucket` does."""
    bucket = evidence_bucket(settings)
    if bucket is None:
        return None
    return EvidenceKeeper(storage=storage, ledger=ledger, metrics=metrics, bucket=bucket)
