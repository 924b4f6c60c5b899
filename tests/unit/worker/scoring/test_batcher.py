"""The micro-batcher."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

import pytest

from detection.errors import TransientError
from worker.scoring.batcher import Batcher, BatcherClosed, BatcherFull, CountMismatch, Displaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HUGE = 10_000


def doubled(items: Sequence[int]) -> list[int | Exception]:
    """Answer each item with twice itself."""
    return [2 * item for item in items]


class Runner:
    """Runs a batcher in one thread and remembers the batches it saw."""

    def __init__(self, batcher: Batcher[int, int]) -> None:
        self.batcher = batcher
        self.batches: list[list[int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def run(self, items: Sequence[int]) -> list[int | Exception]:
        """Remember the batch and answer it."""
        self.batches.append(list(items))
        return doubled(items)

    def start(self) -> None:
        """Start the running thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close the batcher and end the running thread."""
        self._stop.set()
        self.batcher.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.batcher.run_next(self.run, idle_s=0.05)


@pytest.fixture
def make_runner() -> Iterator[object]:
    """Make runners that are stopped when the test ends."""
    made: list[Runner] = []

    def make(*, max_batch: int, max_wait_s: float) -> Runner:
        made.append(Runner(Batcher(max_batch=max_batch, max_wait_s=max_wait_s, capacity=HUGE)))
        return made[-1]

    yield make
    for runner in made:
        runner.stop()


@pytest.mark.parametrize("max_wait_s", [0.0, 0.01, 3600.0])
@pytest.mark.parametrize("max_batch", [1, 2, 7, 64])
def test_every_item_gets_its_own_outcome_and_no_batch_is_too_large(
    make_runner: object, max_batch: int, max_wait_s: float
) -> None:
    """Whatever the limits, each future gets the outcome of its item and the size limit holds."""
    runner = make_runner(max_batch=max_batch, max_wait_s=max_wait_s)  # type: ignore[operator]
    count = 64 if max_wait_s == 3600.0 else 61
    count -= count % max_batch if max_wait_s == 3600.0 else 0
    futures: list[Future[int]] = []
    runner.start()
    futures = [runner.batcher.submit(item) for item in range(count)]
    assert [future.result(10) for future in futures] == [2 * item for item in range(count)]
    assert max(map(len, runner.batches)) <= max_batch
    assert sorted(item for batch in runner.batches for item in batch) == list(range(count))


def test_a_full_batch_does_not_wait() -> None:
    """A batch that is full runs at once, however long the wait may be."""
    batcher: Batcher[int, int] = Batcher(max_batch=3, max_wait_s=3600.0, capacity=HUGE)
    futures = [batcher.submit(item) for item in range(4)]
    assert batcher.run_next(doubled, idle_s=0) == 3
    assert [future.done() for future in futures] == [True, True, True, False]


def test_the_wait_counts_from_the_first_item() -> None:
    """Items that keep coming do not postpone the batch beyond the wait of its first item."""
    batcher: Batcher[int, int] = Batcher(max_batch=HUGE, max_wait_s=0.2, capacity=HUGE)
    first = batcher.submit(0)
    enough = threading.Event()

    def trickle() -> None:
        while not enough.wait(0.02):
            batcher.submit(1)

    thread = threading.Thread(target=trickle)
    thread.start()
    batcher.run_next(doubled, idle_s=1)
    enough.set()
    thread.join()
    assert first.done()


def test_items_that_waited_while_the_runner_was_busy_run_at_once() -> None:
    """A first item older than the wait takes what is there and waits for no more."""
    batcher: Batcher[int, int] = Batcher(max_batch=8, max_wait_s=0.05, capacity=HUGE)
    batcher.submit(1)
    batcher.submit(2)
    batcher._changed.acquire()
    time.sleep(0.06)
    batcher._changed.release()
    assert batcher.run_next(doubled, idle_s=0) == 2


def test_an_alone_item_runs_by_itself_and_the_others_run_together() -> None:
    """A suspect met while collecting waits for the next round and shares its batch with nobody."""
    batcher: Batcher[int, int] = Batcher(max_batch=8, max_wait_s=0.0, capacity=HUGE)
    seen: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int | Exception]:
        seen.append(list(items))
        return doubled(items)

    for item, alone in [(0, False), (1, True), (2, False), (3, True), (4, False)]:
        batcher.submit(item, alone=alone)
    while batcher.run_next(run, idle_s=0):
        pass
    assert seen == [[0, 2, 4], [1], [3]]


def test_an_exception_among_the_outcomes_fails_only_its_item() -> None:
    """One bad outcome leaves the other futures of the batch untouched."""
    batcher: Batcher[int, int] = Batcher(max_batch=3, max_wait_s=0, capacity=HUGE)
    futures = [batcher.submit(item) for item in range(3)]
    batcher.run_next(lambda _: [0, ValueError("one"), 4], idle_s=0)
    assert futures[0].result(0) == 0
    assert futures[2].result(0) == 4
    with pytest.raises(ValueError, match="one"):
        futures[1].result(0)


def test_an_exception_from_the_run_reaches_every_waiter() -> None:
    """A run that raises fails all its futures with that exception, and the batcher lives on."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=HUGE)
    futures = [batcher.submit(item) for item in range(2)]

    def run(_: Sequence[int]) -> list[int | Exception]:
        message = "device fell over"
        raise RuntimeError(message)

    batcher.run_next(run, idle_s=0)
    for future in futures:
        with pytest.raises(RuntimeError, match="fell over"):
            future.result(0)
    later = batcher.submit(5)
    batcher.run_next(doubled, idle_s=0)
    assert later.result(0) == 10


@pytest.mark.parametrize("outcomes", [[], [1], [1, 2, 3]])
def test_another_number_of_outcomes_fails_every_waiter(outcomes: list[int]) -> None:
    """A count that does not match is never matched up by guessing."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=HUGE)
    futures = [batcher.submit(item) for item in range(2)]
    batcher.run_next(lambda _: outcomes, idle_s=0)
    for future in futures:
        with pytest.raises(CountMismatch):
            future.result(0)


def test_nothing_to_run_returns_after_the_idle_time() -> None:
    """An empty batcher gives the runner its turn back."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=1)
    assert batcher.run_next(doubled, idle_s=0.01) == 0


def test_a_full_batcher_refuses() -> None:
    """The queue is bounded, and being full is transient."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=1)
    batcher.submit(1)
    with pytest.raises(BatcherFull) as caught:
        batcher.submit(2)
    assert isinstance(caught.value, TransientError)


def test_close_fails_the_waiting_and_refuses_the_late() -> None:
    """Shutdown leaves no future that nobody will ever settle."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=HUGE)
    futures = [batcher.submit(item) for item in range(3)]
    batcher.close()
    assert not wait(futures, timeout=0).not_done
    for future in futures:
        assert isinstance(future.exception(0), BatcherClosed)
    with pytest.raises(BatcherClosed):
        batcher.submit(4)
    assert batcher.run_next(doubled, idle_s=1) == 0


def test_a_cancelled_item_is_not_run() -> None:
    """A waiter that gave up before its batch began costs no forward pass."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=HUGE)
    given_up, kept = batcher.submit(1), batcher.submit(2)
    assert given_up.cancel()
    seen: list[int] = []
    batcher.run_next(lambda items: [seen.append(item) or item for item in items], idle_s=0)  # type: ignore[func-returns-value]
    assert seen == [2]
    assert kept.result(0) == 2


def test_the_end_of_the_process_is_not_swallowed() -> None:
    """An exit raised inside a run fails the waiters and goes on up."""
    batcher: Batcher[int, int] = Batcher(max_batch=1, max_wait_s=0, capacity=HUGE)
    future = batcher.submit(1)

    def run(_: Sequence[int]) -> list[int | Exception]:
        raise SystemExit(70)

    with pytest.raises(SystemExit):
        batcher.run_next(run, idle_s=0)
    assert isinstance(future.exception(0), SystemExit)


def test_spare_items_run_when_nothing_else_waits() -> None:
    """Spare items make batches of their own, after everything else."""
    batcher: Batcher[int, int] = Batcher(max_batch=4, max_wait_s=0, capacity=4)
    runner = Runner(batcher)
    spare = [batcher.submit_spare(item) for item in (7, 8)]
    assert batcher.run_next(runner.run, idle_s=10) == 2
    assert [future.result(0) for future in spare] == [14, 16]
    assert runner.batches == [[7, 8]]


def test_spare_items_make_way() -> None:
    """Whatever else arrives displaces them, and while it waits none is taken in."""
    batcher: Batcher[int, int] = Batcher(max_batch=4, max_wait_s=0, capacity=4)
    runner = Runner(batcher)
    spare = batcher.submit_spare(7)
    wanted = batcher.submit(1)
    assert isinstance(spare.exception(0), Displaced)
    with pytest.raises(Displaced):
        batcher.submit_spare(8)
    assert batcher.run_next(runner.run, idle_s=10) == 1
    assert wanted.result(0) == 2
    assert runner.batches == [[1]]


def test_no_more_spare_items_wait_than_fit_a_batch() -> None:
    """What cannot run next is not worth keeping, and closing fails what is kept."""
    batcher: Batcher[int, int] = Batcher(max_batch=2, max_wait_s=0, capacity=4)
    kept = [batcher.submit_spare(item) for item in (1, 2)]
    with pytest.raises(Displaced):
        batcher.submit_spare(3)
    batcher.close()
    assert all(isinstance(future.exception(0), BatcherClosed) for future in kept)
    with pytest.raises(BatcherClosed):
        batcher.submit_spare(4)
