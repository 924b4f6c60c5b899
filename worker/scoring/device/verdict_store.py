"""Stores the verdicts of a batch: together, and one by one when the ledger refuses that."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from detection.errors import TransientError
from worker.ledger.interface import Verdict
from worker.scoring.device.leased_request import verdict_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.ledger.interface import Ledger
    from worker.scoring.device.inference_request import ScoredRequest
    from worker.scoring.device.leased_request import LeasedRequest
    from worker.telemetry.health import Health
    from worker.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_TRIES = 3
_DELAY_S = 0.2


class VerdictStore:
    """Stores verdicts in the ledger, on the device thread."""

    def __init__(self, ledger: Ledger, *, health: Health, metrics: Metrics) -> None:
        self._ledger = ledger
        self._health = health
        self._metrics = metrics
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Wait no more between tries."""
        self._stopping.set()

    def store(
        self, scored: Sequence[ScoredRequest[LeasedRequest] | Exception]
    ) -> list[Verdict | Exception]:
        """Store the verdicts on the scored images; return what became of each.

        A verdict that the ledger has comes back, any other image as the error that kept it out.
        """
        outcomes = [one if isinstance(one, Exception) else verdict_of(one) for one in scored]
        with self._metrics.persist.time():
            return self._store(outcomes)

    def _store(self, outcomes: list[Verdict | Exception]) -> list[Verdict | Exception]:
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        if not verdicts:
            return outcomes
        try:
            self._record(verdicts)
        except TransientError as error:
            return [error if isinstance(outcome, Verdict) else outcome for outcome in outcomes]
        except Exception:  # noqa: BLE001 - one row may be what the ledger refuses
            _log.exception("verdict_store_failed", size=len(verdicts))
            return [self._record_alone(outcome) for outcome in outcomes]
        return outcomes

    def _record_alone(self, outcome: Verdict | Exception) -> Verdict | Exception:
        if isinstance(outcome, Verdict):
            try:
                self._record([outcome])
            except Exception as error:  # noqa: BLE001 - it is this image's outcome
                return error
        return outcome

    def _record(self, verdicts: Sequence[Verdict]) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                self._ledger.record(verdicts)
            except TransientError as error:
                _log.warning("verdict_store_retried", error=str(error), tries_left=tries_left)
                if not tries_left:
                    raise
                self._health.beat()
                self._stopping.wait(_DELAY_S)
            else:
                return
