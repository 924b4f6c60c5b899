"""Stores the verdicts of a batch: together, and one by one when the ledger refuses that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from detection.errors import TransientError
from worker.ledger.interface import Verdict

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from worker.ledger.interface import Ledger
    from worker.telemetry.health import Health

_log = structlog.get_logger(__name__)

_TRIES = 3
_DELAY_S = 0.2


class VerdictStore:
    """Stores verdicts in the ledger; once `stopping` is set it waits no more between its tries."""

    def __init__(self, ledger: Ledger, *, health: Health, stopping: threading.Event) -> None:
        self._ledger = ledger
        self._health = health
        self._stopping = stopping

    def store(self, outcomes: list[Verdict | Exception]) -> list[Verdict | Exception]:
        """Store the verdicts among the outcomes; return what became of each outcome.

        A verdict that the ledger has comes back as it is, any other as the error that kept it out.
        """
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
