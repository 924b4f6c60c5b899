"""The challenger's verdicts: on a share of the images, when the champion leaves time for it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from worker.ledger.interface import Role
from worker.scoring.batcher import Displaced

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from worker.ledger.interface import Verdict
    from worker.scoring.device.leased_request import LeasedRequest
    from worker.scoring.device_thread import InferenceThread
    from worker.scoring.leases import Leases
    from worker.settings import Scoring
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class ShadowScoring:
    """Scores images a second time, with the model in shadow.

    `waiting` counts the messages that no worker has taken yet: while there are any, nothing is done
    that could be left.
    """

    def __init__(
        self,
        *,
        leases: Leases,
        device: InferenceThread[LeasedRequest, Verdict],
        waiting: Callable[[], int],
        settings: Scoring,
        metrics: Metrics,
    ) -> None:
        self._leases = leases
        self._device = device
        self._waiting = waiting
        self._settings = settings
        self._metrics = metrics

    def score(self, request: LeasedRequest) -> None:
        """Have the challenger judge an image that has its verdict, if that costs nobody anything.

        Whatever goes wrong is counted and forgotten.
        """
        version = self._device.shadow_version
        # A suspect that kills the process must have been judged by one model.
        judged = request.role is Role.CHAMPION and not request.alone
        share = self._settings.shadow_share
        if version is None or not judged or not in_share(request.lease.image_id, share):
            return
        outcome = "dropped"
        try:
            idle = not self._device.busy and not self._waiting()
            if idle and self._score(request, version):
                outcome = "scored"
        except Displaced:
            pass
        except Exception as error:  # noqa: BLE001 - the check itself went well
            outcome = "failed"
            _log.warning("shadow_failed", error=f"{type(error).__name__}: {error}")
        self._metrics.shadow.labels(outcome).inc()

    def _score(self, request: LeasedRequest, version: str) -> bool:
        lease = self._leases.take_for_shadow(request.lease.image_id, model_version=version)
        if lease is None:
            return False
        wanted = replace(
            request,
            lease=lease,
            alone=lease.alone,
            role=Role.SHADOW,
            model_version=version,
            submitted_at=time.monotonic(),
        )
        try:
            verdict = self._device.score(wanted, wait_s=self._settings.lease_s)
        except Exception as error:
            self._leases.release(lease, detail=type(error).__name__)
            raise
        self._metrics.verdicts.labels(verdict.label, version, Role.SHADOW).inc()
        return True


def in_share(image_id: UUID, share: float) -> bool:
    """Return whether an image is in a share, 0 to 1, of all; the same in every worker."""
    drawn = hashlib.blake2b(image_id.bytes, digest_size=8).digest()
    return int.from_bytes(drawn) < share * 2**64
