"""Questions that many threads ask the ledger at the same time, put into one transaction.

The first thread to ask takes along whoever comes until the next question may be asked. A thread
that asks while nobody did lately waits for nothing, so an idle worker answers as fast as ever.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from detection.intake.version import INTAKE_VERSION
from worker.database.engine import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.ledger.interface import Ledger, Verdict

#: The longest that anybody waits for others to join: a fraction of what a forward pass takes.
MAX_EVERY_S = 0.02

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Group(Generic[Item, Answer]):
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.answers: Future[Sequence[Answer]] = Future()


class Coalescer(Generic[Item, Answer]):
    """Asks at most once every `every_s` seconds; `ask_all` answers items in their order.

    A question that takes long holds up only its own items: the next one is asked beside it.
    """

    def __init__(
        self, ask_all: Callable[[Sequence[Item]], Sequence[Answer]], *, every_s: float
    ) -> None:
        self._ask_all = ask_all
        self._every_s = every_s
        self._lock = threading.Lock()
        self._open: _Group[Item, Answer] | None = None
        self._next_at = float("-inf")

    def ask(self, item: Item) -> Answer:
        """Return the answer for one item; raises what `ask_all` raises.

        What fails for several items may be one's fault, so each is then asked for alone; but not
        while the ledger is away, which is nobody's. What ends the thread that asks for all, as its
        process's shutdown does, ends no other one.
        """
        with self._lock:
            group = self._open
            leads = group is None
            if group is None:
                group = self._open = _Group()
            place = len(group.items)
            group.items.append(item)
        if leads:
            self._lead(group)
        error = group.answers.exception()
        if error is None:
            return group.answers.result()[place]
        passing_on = isinstance(error, LedgerUnavailable)
        if passing_on or len(group.items) == 1 or (leads and not isinstance(error, Exception)):
            raise error
        return self._ask_all([item])[0]

    def _lead(self, group: _Group[Item, Answer]) -> None:
        try:
            try:
                time.sleep(max(0.0, self._next_at - time.monotonic()))
            finally:
                with self._lock:
                    self._open = None
                    self._next_at = time.monotonic() + self._every_s
            group.answers.set_result(self._ask_all(group.items))
        except BaseException as error:  # noqa: BLE001 - the askers raise it, this one too
            group.answers.set_exception(error)


class KnownVerdicts:
    """Finds the verdicts that the same bytes got before."""

    def __init__(self, ledger: Ledger, *, every_s: float) -> None:
        self._ledger = ledger
        self._coalescer = Coalescer(self._find_all, every_s=every_s)

    def find(self, sha256: str, *, model_version: str) -> Verdict | None:
        """Return the verdict of the model version on these bytes, read as they are read now."""
        return self._coalescer.ask((sha256, model_version))

    def _find_all(self, wanted: Sequence[tuple[str, str]]) -> list[Verdict | None]:
        # Of one model version, but while another one takes over.
        found = {
            version: self._ledger.reusable_verdicts(
                {sha256 for sha256, model_version in wanted if model_version == version},
                model_version=version,
                intake_version=INTAKE_VERSION,
            )
            for version in {model_version for _, model_version in wanted}
        }
        return [found[model_version].get(sha256) for sha256, model_version in wanted]
