"""One image from bytes to its score, without a ledger: decode pool → batcher → detector."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from detection.evidence import DOCUMENT, make_evidence
from worker.scoring.device.inference_request import InferenceRequest
from worker.scoring.score_record import score_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from worker.decoding.pool import Decoded, DecodePool
    from worker.ledger.interface import ImageFacts
    from worker.scoring.device.inference_request import ScoredRequest
    from worker.scoring.device_thread import InferenceThread
    from worker.telemetry.metrics import Metrics


class Checker:
    """Checks images for the event loop; `requests` is how many may be under way at once."""

    def __init__(
        self,
        *,
        decoder: DecodePool,
        device: InferenceThread[InferenceRequest, ScoredRequest[InferenceRequest]],
        metrics: Metrics,
        requests: int,
    ) -> None:
        self._decoder = decoder
        self._device = device
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(requests, thread_name_prefix="check")

    def close(self) -> None:
        """End the threads; checks that are under way go on to their end."""
        self._threads.shutdown()

    async def check(
        self,
        data: bytes,
        *,
        declared_type: str | None = None,
        wait_s: float,
        evidence: bool = False,
    ) -> dict[str, Any]:
        """Return the record of an image: its score, what it is, and on demand its evidence.

        Decoding is waited for at most `wait_s`; a caller that is cancelled leaves nothing behind.
        Raises an `ImageRejected` or another `PermanentError` for what cannot be checked, and a
        `TransientError` for what can be tried again.
        """
        future = self._threads.submit(self._decode, data, declared_type, wait_s)
        try:
            decoded = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_give_back)
            raise
        scoring: Future[ScoredRequest[InferenceRequest]] | None = None
        try:
            scoring = self._device.submit(
                InferenceRequest(
                    sha256=decoded.facts.sha256,
                    sample=decoded.sample,
                    submitted_at=time.monotonic(),
                )
            )
            scored = await asyncio.wrap_future(scoring)
            record = _record(scored, decoded.facts)
            if evidence:
                pixels = decoded.frame(scored.score.frame)
                files = await asyncio.wrap_future(
                    self._threads.submit(make_evidence, pixels, scored.score)
                )
                record["evidence"] = _written(files)
        finally:
            # The device may still have the pixels of a request that was cancelled.
            if scoring is None or scoring.done():
                _release(decoded)
            else:
                scoring.add_done_callback(lambda _: _release(decoded))
        version = scored.scorer.model_version
        self._metrics.verdicts.labels(record["label"], version, scored.request.role).inc()
        return record

    def _decode(self, data: bytes, declared_type: str | None, wait_s: float) -> Decoded:
        with self._metrics.decode.time():
            return self._decoder.decode(data, declared_type=declared_type, wait_s=wait_s)


def _give_back(future: Future[Decoded]) -> None:
    """Release what was decoded for a request that waits no more."""
    if not future.cancelled() and future.exception() is None:
        _release(future.result())


def _release(decoded: Decoded) -> None:
    with decoded:
        pass


def _record(scored: ScoredRequest[InferenceRequest], facts: ImageFacts) -> dict[str, Any]:
    image = {
        "sha256": facts.sha256,
        "size": facts.size,
        "format": facts.format,
        "width": facts.width,
        "height": facts.height,
    }
    version = scored.scorer.model_version
    return score_record(scored.score, model_version=version) | {"image": image}


def _written(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return evidence as JSON takes it: its document, and the other files in base64."""
    return {
        "document": json.loads(files[DOCUMENT]),
        "files": {
            name: base64.b64encode(data).decode()
            for name, data in files.items()
            if name != DOCUMENT
        },
    }
