"""Keeps evidence in a bucket, beside verdicts that a person will look at: docs/evidence.md.

Kept for verdicts that say `generated` or `unsure` and for whatever else waits for a person, the
random audit for one, once the verdict is stored: evidence that cannot be made or kept is logged and
counted, and never costs an image its verdict. Every image has evidence of its own, also where its
verdict was taken over from another's: each goes with its image.

It is made by the thread of its image, from pixels that the decode pool gave: no decoder runs here,
and the device thread waits for nothing of it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from detection.errors import PermanentError, SettingsError, TransientError
from detection.evidence import DOCUMENT, make_evidence
from detection.score import Label, Score
from worker.storage.interface import parse_uri, purge, purge_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    import numpy as np
    from numpy.typing import NDArray

    from worker.ledger.interface import Ledger, Verdict
    from worker.settings import Settings
    from worker.storage.interface import Storage
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

#: The one file of evidence that an earlier release kept.
FLAT = "evidence.png"
#: Larger than any file of evidence.
MAX_BYTES = 8 * 2**20
_FOLDER = "evidence"
_TYPES = {"json": "application/json", "jpg": "image/jpeg", "png": "image/png"}


class EvidenceKeeper:
    """Keeps evidence in a bucket, beside the verdicts that somebody will look at."""

    def __init__(self, *, storage: Storage, ledger: Ledger, metrics: Metrics, bucket: str) -> None:
        self._storage, self._ledger, self._metrics = storage, ledger, metrics
        self._bucket = bucket

    def keep(self, verdict: Verdict, pixels: NDArray[np.uint8]) -> None:
        """Keep the evidence of a stored verdict on an image, uint8 (H, W, 3); raises nothing."""
        self._keep(verdict, lambda: make_evidence(pixels, score_of(verdict)))

    def copy(self, verdict: Verdict, original: Verdict) -> None:
        """Give a stored verdict a copy of the evidence of the one it was taken over from."""
        uri = original.evidence_uri
        if uri is not None:
            self._keep(verdict, lambda: load_evidence(self._storage, uri))

    def _keep(self, verdict: Verdict, make: Callable[[], Mapping[str, bytes]]) -> None:
        try:
            if verdict.label == Label.REAL and not self._ledger.in_review(verdict.image_id):
                return
            uri = store_evidence(
                make(),
                verdict,
                storage=self._storage,
                ledger=self._ledger,
                bucket=self._bucket,
            )
            outcome = "erased" if uri is None else "kept"
        except Exception as error:  # noqa: BLE001 - the verdict stands without it
            outcome = "failed"
            _log.warning("evidence_failed", error=f"{type(error).__name__}: {error}")
        self._metrics.evidence.labels(outcome).inc()


def score_of(verdict: Verdict) -> Score:
    """Return the score that a verdict was made of."""
    return Score(
        probability=verdict.score,
        label=Label(verdict.label),
        branches=verdict.branches,
        decided_by=verdict.decided_by,
        operating_point=verdict.operating_point,
        prior=verdict.prior,
        outside=verdict.outside,
        error_map=verdict.error_map,
        frame=verdict.frame,
        distance=verdict.distance,
        tiles=verdict.tiles,
    )


def store_evidence(
    files: Mapping[str, bytes],
    verdict: Verdict,
    *,
    storage: Storage,
    ledger: Ledger,
    bucket: str,
) -> str | None:
    """Put a verdict's evidence into a bucket and note its address, which is returned.

    None when the image is to be erased: the evidence is taken back.
    """
    folder = evidence_folder(verdict.image_id, verdict.model_version)
    main = DOCUMENT if DOCUMENT in files else FLAT
    _put(files, storage, bucket, folder, last=main)
    uri = f"s3://{bucket}/{folder}/{main}"
    if ledger.attach_evidence(verdict.image_id, model_version=verdict.model_version, uri=uri):
        return uri
    purge_folder(storage, bucket, folder)
    return None


def _put(
    files: Mapping[str, bytes], storage: Storage, bucket: str, folder: str, *, last: str
) -> None:
    """Store all files or, as far as storage lets us, none: no row would tell of a part."""
    begun = False
    try:
        for name in sorted(files, key=last.__eq__):
            kind = _TYPES[name.rpartition(".")[2]]
            storage.put(bucket, f"{folder}/{name}", files[name], content_type=kind)
            begun = True
    except Exception:
        if begun:
            with suppress(PermanentError, TransientError):  # the first one says more
                purge_folder(storage, bucket, folder)
        raise


def load_evidence(storage: Storage, uri: str) -> dict[str, bytes]:
    """Fetch the files of stored evidence by their names: `DOCUMENT` and others, or `FLAT` alone.

    Raises `ObjectMissing` when it is not there any more.
    """
    bucket, _ = parse_uri(uri)
    keys = stored_keys(storage, uri)
    names = [key.rpartition("/")[2] for key in keys] if keys[1:] else [FLAT]
    return {
        name: storage.fetch(bucket, key, max_bytes=MAX_BYTES)
        for name, key in zip(names, keys, strict=True)
    }


def stored_keys(storage: Storage, uri: str) -> list[str]:
    """Return the keys of stored evidence, the document's first; raises `ObjectMissing`."""
    bucket, key = parse_uri(uri)
    folder, _, name = key.rpartition("/")
    if name != DOCUMENT:
        return [key]
    document = json.loads(storage.fetch(bucket, key, max_bytes=MAX_BYTES))
    files = [layer["file"] for layer in document["layers"] if "file" in layer]
    return [key, *(f"{folder}/{file}" for file in files)]


def remove_evidence(storage: Storage, uri: str) -> None:
    """Remove stored evidence, every version of every file of it; raises `ObjectKept`."""
    bucket, key = parse_uri(uri)
    folder = _own_folder(key)
    if folder is None:
        purge(storage, bucket, key)
    else:
        purge_folder(storage, bucket, folder)


def remove_evidence_of(storage: Storage, bucket: str, image_id: UUID) -> None:
    """Remove all evidence of an image, also what no row tells of; raises `ObjectKept`."""
    purge_folder(storage, bucket, f"{_FOLDER}/{image_id}")


def evidence_folder(image_id: UUID, model_version: str) -> str:
    """Return the folder of the evidence beside the verdict of a model version on an image."""
    return f"{_FOLDER}/{image_id}/{model_version}"


def _own_folder(key: str) -> str | None:
    """Return the folder that holds nothing but this evidence; earlier releases used none."""
    match key.split("/"):
        case [first, image, version, name] if first == _FOLDER and name in {DOCUMENT, FLAT}:
            return f"{_FOLDER}/{image}/{version}"
    return None


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
