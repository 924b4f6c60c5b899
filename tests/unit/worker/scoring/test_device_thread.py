"""The device thread, with scorers that misbehave and the in-memory ledger."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from structlog.testing import capture_logs

from detection.intake.animation import ShownFrame
from detection.intake.version import INTAKE_VERSION
from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable
from worker.ledger.interface import AlreadyDone, ImageFacts, Lease, Role, State, Upload, Verdict
from worker.ledger.memory import MemoryLedger
from worker.scoring.device.forward_pass import GoldenMismatch, OutOfDeviceMemory, ScoringFailed
from worker.scoring.device.leased_request import LeasedRequest
from worker.scoring.device.verdict_store import VerdictStore
from worker.scoring.device_thread import (
    EXIT_DEVICE_LOST,
    EXIT_STUCK,
    InferenceThread,
    ModelReplaced,
)
from worker.scoring.interface import DeviceLost, DeviceMemoryExceeded, Golden
from worker.scoring.memory import MemoryScorer
from worker.settings import Scoring
from worker.telemetry.health import ALIVE, Health
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

#: The end of the process, which its tests replace by an exception that ends the thread.
ends_the_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

LONG_S = 30.0
GUILTY = 201


class Bench:
    """A device on an in-memory ledger; `exits` notes how the process would have ended."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.ledger = MemoryLedger()
        self.exits: list[int] = []
        self.ended = threading.Event()
        self.alive = folder / ALIVE
        self.metrics = Metrics()
        self._health = Health(folder)
        self._verdicts = VerdictStore(self.ledger, health=self._health, metrics=self.metrics)
        self._settings = Scoring.model_validate({"max_batch": 4, "max_wait_s": 0.2, **settings})
        self.device: InferenceThread[LeasedRequest, Verdict]
        self._count = 0

    def start(self, scorer: MemoryScorer) -> InferenceThread[LeasedRequest, Verdict]:
        """Start a device with a scorer."""
        self.device = InferenceThread(
            lambda: scorer,
            conclude=self._verdicts.store,
            settings=self._settings,
            beat=self._health.beat,
            metrics=self.metrics,
            end_process=self._end,
        )
        self.device.start()
        scorer.batches.clear()
        return self.device

    def work(
        self,
        value: int,
        *,
        alone: bool = False,
        body: bytes | None = None,
        role: Role = Role.CHAMPION,
        model_version: str | None = None,
    ) -> LeasedRequest:
        """Register and lease an upload, as if its grey image had just been decoded."""
        self._count += 1
        key = f"{self._count}.png"
        registered = self.ledger.register([Upload(bucket="b", key=key, etag="e")])
        image_id = registered[0].image_id
        lease = self.ledger.lease(image_id, worker="w", duration=timedelta(minutes=1))
        assert isinstance(lease, Lease)
        if alone:
            lease = Lease(
                **{name: getattr(lease, name) for name in Lease.__slots__ if name != "alone"},
                alone=True,
            )
        sha256 = hashlib.sha256(key.encode() if body is None else body).hexdigest()
        return LeasedRequest(
            lease=lease,
            alone=lease.alone,
            sha256=sha256,
            facts=ImageFacts(sha256=sha256, size=1, format="PNG", width=64, height=64),
            sample=(ShownFrame(0, 1.0, np.full((64, 64, 3), value, np.uint8)),),
            role=role,
            timings_ms={"fetch": 1.0},
            submitted_at=0.0,
            model_version=model_version,
        )

    def state(self, work: LeasedRequest) -> State:
        """Return the state of the work's image."""
        answer = self.ledger.lease(
            work.lease.image_id, worker="other", duration=timedelta(minutes=1)
        )
        return answer.state if isinstance(answer, AlreadyDone) else State.PENDING

    def _end(self, code: int) -> None:
        self.exits.append(code)
        self.ended.set()
        raise SystemExit(code)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make benches whose devices are stopped when the test ends."""
    made: list[Bench] = []

    def make(**settings: object) -> Bench:
        made.append(Bench(tmp_path, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.device.stop()


def test_a_batch_is_scored_stored_and_answered(make_bench: Callable[..., Bench]) -> None:
    """Verdicts are in the ledger by the time that the futures are settled."""
    bench = make_bench()
    scorer = MemoryScorer()
    device = bench.start(scorer)
    works = [bench.work(value) for value in (0, 51, 255, 128)]
    futures = [device.submit(work) for work in works]
    verdicts = [future.result(LONG_S) for future in futures]
    assert [verdict.score for verdict in verdicts] == pytest.approx([0, 0.2, 1, 128 / 255])
    assert [verdict.label for verdict in verdicts] == ["real", "real", "generated", "unsure"]
    assert [verdict.image_id for verdict in verdicts] == [work.lease.image_id for work in works]
    assert {bench.state(work) for work in works} == {State.SCORED}
    assert scorer.batches == [4]
    assert bench.alive.exists()


def _film(request: LeasedRequest, *frames: tuple[float, int]) -> LeasedRequest:
    sample = tuple(
        ShownFrame(10 + number, share, np.full((64, 64, 3), value, np.uint8))
        for number, (share, value) in enumerate(frames)
    )
    return replace(request, sample=sample)


def test_an_animation_is_judged_by_half_of_its_time(make_bench: Callable[..., Bench]) -> None:
    """Every frame is scored, at most a batch at once; the verdict names the one that decided."""
    bench = make_bench()
    scorer = MemoryScorer()
    device = bench.start(scorer)
    still = bench.work(51)
    decoy = _film(bench.work(0), (0.1, 0), (0.9, 255))
    flash = _film(bench.work(1), (0.2, 255), (0.3, 10), (0.3, 20), (0.2, 30))
    futures = [device.submit(request) for request in (still, decoy, flash)]
    verdicts = [future.result(LONG_S) for future in futures]
    assert [verdict.score for verdict in verdicts] == pytest.approx([0.2, 1, 20 / 255])
    assert [verdict.frame for verdict in verdicts] == [0, 11, 12]
    assert scorer.batches == [4, 3]


def test_a_frame_that_fails_fails_its_image_alone(make_bench: Callable[..., Bench]) -> None:
    """An animation of which one frame cannot be scored gets no verdict from the others."""

    def refuse(images: Sequence[NDArray[np.uint8]]) -> None:
        if any(image[0, 0, 0] == GUILTY for image in images):
            raise DeviceMemoryExceeded

    bench = make_bench()
    device = bench.start(MemoryScorer(before=refuse))
    film, still = _film(bench.work(0), (0.9, 10), (0.1, GUILTY)), bench.work(51)
    futures = [device.submit(film), device.submit(still)]
    assert isinstance(futures[0].exception(LONG_S), OutOfDeviceMemory)
    assert futures[1].result(LONG_S).score == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", [0.3, float("nan")])
def test_a_wrong_golden_score_refuses_to_start(
    make_bench: Callable[..., Bench], wrong: float
) -> None:
    """A device that does not reproduce the golden score never gets as far as a message."""

    class Broken(MemoryScorer):
        def golden(self) -> Golden:
            return Golden(
                image=super().golden().image, branches={"brightness": wrong}, tolerance=0.01
            )

    with pytest.raises(GoldenMismatch, match="memory-1"):
        make_bench().start(Broken())


def test_the_golden_image_is_scored_alone_and_in_a_full_batch(
    make_bench: Callable[..., Bench],
) -> None:
    """Warm-up runs the smallest and the largest batch."""

    class Listening(MemoryScorer):
        sizes: tuple[int, ...] = ()

        def score(self, images: Sequence[NDArray[np.uint8]]) -> list[object]:  # type: ignore[override]
            self.sizes += (len(images),)
            return super().score(images)  # type: ignore[return-value]

    scorer = Listening()
    make_bench().start(scorer)
    assert scorer.sizes == (1, 4)


def test_out_of_memory_halves_until_it_fits(make_bench: Callable[..., Bench]) -> None:
    """A batch that does not fit is scored in parts, and every image gets its verdict."""

    def at_most_one(images: Sequence[NDArray[np.uint8]]) -> None:
        if len(images) > 1:
            raise DeviceMemoryExceeded

    bench = make_bench()
    scorer = MemoryScorer(before=at_most_one)
    device = bench.start(scorer)
    futures = [device.submit(bench.work(value)) for value in (10, 20, 30, 40)]
    scores = [future.result(LONG_S).score for future in futures]
    assert scores == pytest.approx([10 / 255, 20 / 255, 30 / 255, 40 / 255])
    assert scorer.batches == [4, 2, 1, 1, 2, 1, 1]


def test_an_image_too_large_for_the_device_fails_alone(make_bench: Callable[..., Bench]) -> None:
    """Only the image that does not fit by itself is lost."""

    def refuse(images: Sequence[NDArray[np.uint8]]) -> None:
        if any(image[0, 0, 0] == GUILTY for image in images):
            raise DeviceMemoryExceeded

    bench = make_bench()
    device = bench.start(MemoryScorer(before=refuse))
    futures = [device.submit(bench.work(value)) for value in (1, GUILTY, 3, 4)]
    assert isinstance(futures[1].exception(LONG_S), OutOfDeviceMemory)
    assert [futures[index].exception(LONG_S) for index in (0, 2, 3)] == [None] * 3


def test_only_the_guilty_image_of_a_batch_fails(make_bench: Callable[..., Bench]) -> None:
    """An exception is pinned to its image by scoring the batch one by one."""

    def raise_for_guilty(images: Sequence[NDArray[np.uint8]]) -> None:
        if any(image[0, 0, 0] == GUILTY for image in images):
            raise ZeroDivisionError

    bench = make_bench()
    device = bench.start(MemoryScorer(before=raise_for_guilty))
    works = [bench.work(value) for value in (1, 2, GUILTY, 4)]
    futures = [device.submit(work) for work in works]
    error = futures[2].exception(LONG_S)
    assert isinstance(error, ScoringFailed)
    assert error.reason == "scoring_failed"
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert [bench.state(works[index]) for index in (0, 1, 3)] == [State.SCORED] * 3
    assert bench.exits == []


def test_a_score_that_is_no_probability_is_no_verdict(make_bench: Callable[..., Bench]) -> None:
    """Not-a-number fails the image; it is never stored as a score."""

    class Sick(MemoryScorer):
        def score(self, images: Sequence[NDArray[np.uint8]]) -> list[object]:  # type: ignore[override]
            scores = super().score(images)
            return [  # type: ignore[return-value]
                type(score)(
                    **{name: getattr(score, name) for name in type(score).__slots__}
                    | ({"probability": float("nan")} if image[0, 0, 0] == GUILTY else {})
                )
                for score, image in zip(scores, images, strict=True)
            ]

    bench = make_bench()
    device = bench.start(Sick())
    sick, sound = device.submit(bench.work(GUILTY)), device.submit(bench.work(5))
    assert isinstance(sick.exception(LONG_S), ScoringFailed)
    assert sound.exception(LONG_S) is None


@ends_the_thread
def test_a_device_that_fails_its_golden_image_ends_the_process(
    make_bench: Callable[..., Bench],
) -> None:
    """When everything fails, it is not the images: none is failed and the process ends."""
    broken = threading.Event()

    def fail(_: Sequence[NDArray[np.uint8]]) -> None:
        if broken.is_set():
            raise ZeroDivisionError

    bench = make_bench()
    device = bench.start(MemoryScorer(before=fail))
    broken.set()
    work = bench.work(1)
    future = device.submit(work)
    assert bench.ended.wait(LONG_S)
    assert bench.exits[0] == EXIT_DEVICE_LOST
    assert isinstance(future.exception(LONG_S), SystemExit)
    assert bench.state(work) == State.PENDING


@ends_the_thread
def test_a_lost_device_ends_the_process(make_bench: Callable[..., Bench]) -> None:
    """A sticky device error is never blamed on an image."""
    lost = threading.Event()

    def lose(_: Sequence[NDArray[np.uint8]]) -> None:
        if lost.is_set():
            raise DeviceLost

    bench = make_bench()
    device = bench.start(MemoryScorer(before=lose))
    lost.set()
    device.submit(bench.work(1))
    assert bench.ended.wait(LONG_S)
    assert bench.exits[0] == EXIT_DEVICE_LOST


@ends_the_thread
def test_a_stuck_forward_pass_ends_the_process(make_bench: Callable[..., Bench]) -> None:
    """The watchdog does not need the device thread to come back."""
    stuck, freed = threading.Event(), threading.Event()

    def hang(_: Sequence[NDArray[np.uint8]]) -> None:
        if stuck.is_set():
            freed.wait(LONG_S)

    bench = make_bench(forward_timeout_s=0.2)
    device = bench.start(MemoryScorer(before=hang))
    stuck.set()
    device.submit(bench.work(1))
    assert bench.ended.wait(LONG_S)
    assert bench.exits == [EXIT_STUCK]
    freed.set()


def test_suspects_are_scored_alone(make_bench: Callable[..., Bench]) -> None:
    """An image with a death on record shares its batch with nobody."""
    bench = make_bench()
    scorer = MemoryScorer()
    device = bench.start(scorer)
    works = [bench.work(1), bench.work(2, alone=True), bench.work(3)]
    for future in [device.submit(work) for work in works]:
        future.result(LONG_S)
    assert sorted(scorer.batches) == [1, 2]


def test_the_same_bytes_in_a_batch_are_scored_once(make_bench: Callable[..., Bench]) -> None:
    """Two uploads of one file cost one forward pass and get a verdict each."""
    bench = make_bench()
    scorer = MemoryScorer()
    device = bench.start(scorer)
    works = [bench.work(51, body=b"same"), bench.work(51, body=b"same"), bench.work(9)]
    futures = [device.submit(work) for work in works]
    assert [future.result(LONG_S).score for future in futures[:2]] == pytest.approx([0.2, 0.2])
    assert sum(scorer.batches) == 2
    assert {bench.state(work) for work in works} == {State.SCORED}


def test_a_ledger_that_is_away_for_a_moment_costs_nothing(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing verdicts is tried again before the forward pass is thrown away."""
    bench = make_bench()
    scorer = MemoryScorer()
    device = bench.start(scorer)
    record, failures = bench.ledger.record, [LedgerUnavailable(), LedgerUnavailable()]

    def flaky(verdicts: Sequence[Verdict]) -> None:
        if failures:
            raise failures.pop()
        record(verdicts)

    monkeypatch.setattr(bench.ledger, "record", flaky)
    work = bench.work(1)
    device.submit(work).result(LONG_S)
    assert bench.state(work) == State.SCORED
    assert scorer.batches == [1]


def test_a_row_that_the_ledger_refuses_fails_alone(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row that cannot be stored does not take its neighbours with it."""
    bench = make_bench()
    device = bench.start(MemoryScorer())
    record = bench.ledger.record

    def picky(verdicts: Sequence[Verdict]) -> None:
        if any(round(255 * verdict.score) == GUILTY for verdict in verdicts):
            raise ValueError
        record(verdicts)

    monkeypatch.setattr(bench.ledger, "record", picky)
    guilty, innocent = bench.work(GUILTY), bench.work(1)
    futures = [device.submit(guilty), device.submit(innocent)]
    assert isinstance(futures[0].exception(LONG_S), ValueError)
    assert futures[1].exception(LONG_S) is None
    assert bench.state(innocent) == State.SCORED


def test_the_liveness_file_is_touched_while_batches_run(
    make_bench: Callable[..., Bench],
) -> None:
    """The file that the liveness probe reads follows the device thread."""
    bench = make_bench()
    device = bench.start(MemoryScorer())
    bench.alive.unlink(missing_ok=True)
    device.submit(bench.work(1)).result(LONG_S)
    eventually(bench.alive.exists, timeout_s=LONG_S)


def test_models_change_between_two_batches(make_bench: Callable[..., Bench]) -> None:
    """What waits during a swap is scored by the new champion, and its verdict says so."""
    entered, freed = threading.Event(), threading.Event()

    def block(_: Sequence[NDArray[np.uint8]]) -> None:
        if armed.is_set():
            entered.set()
            assert freed.wait(LONG_S)

    armed = threading.Event()
    bench = make_bench(max_wait_s=0)
    device = bench.start(MemoryScorer(before=block))
    armed.set()
    before = device.submit(bench.work(10))
    assert entered.wait(LONG_S)
    swapped = device.swap_model(Role.CHAMPION, MemoryScorer("memory-2"))
    after = device.submit(bench.work(20))
    bound = device.submit(bench.work(30, role=Role.RESCORE, model_version="memory-1"))
    freed.set()
    assert before.result(LONG_S).model_version == "memory-1"
    swapped.result(LONG_S)
    assert after.result(LONG_S).model_version == "memory-2"
    assert isinstance(bound.exception(LONG_S), ModelReplaced)
    assert device.model_version == "memory-2"
    labels = {"role": "champion", "model_version": "memory-2"}
    assert bench.metrics.registry.get_sample_value("unlatent_model", labels) == 1
    labels["model_version"] = "memory-1"
    assert bench.metrics.registry.get_sample_value("unlatent_model", labels) is None


def test_a_model_calibrated_on_other_pixels_serves_and_every_verdict_says_so(
    make_bench: Callable[..., Bench],
) -> None:
    """Thresholds measured under another intake are a warning in row and metrics, no refusal."""
    bench = make_bench(max_wait_s=0)
    scorer = MemoryScorer()
    scorer.intake_versions = (INTAKE_VERSION + 1,)
    with capture_logs() as logs:
        device = bench.start(scorer)
    verdict = device.submit(bench.work(10)).result(LONG_S)
    assert (verdict.intake_version, verdict.thresholds_hold) == (INTAKE_VERSION, False)
    labels = {"role": "champion", "model_version": "memory-1"}
    value = bench.metrics.registry.get_sample_value
    assert value("unlatent_thresholds_hold", labels) == 0
    assert [log["event"] for log in logs] == ["thresholds_not_measured"]
    device.swap_model(Role.CHAMPION, MemoryScorer("memory-2")).result(LONG_S)
    assert device.submit(bench.work(20)).result(LONG_S).thresholds_hold
    assert value("unlatent_thresholds_hold", labels | {"model_version": "memory-2"}) == 1
    assert value("unlatent_thresholds_hold", labels) is None


def test_a_model_with_a_wrong_golden_score_takes_no_role(make_bench: Callable[..., Bench]) -> None:
    """The old champion goes on scoring, and whoever appointed the new one is told why."""

    class Broken(MemoryScorer):
        def golden(self) -> Golden:
            return Golden(
                image=super().golden().image, branches={"brightness": 0.3}, tolerance=0.01
            )

    bench = make_bench()
    device = bench.start(MemoryScorer())
    for role in (Role.CHAMPION, Role.SHADOW):
        refused = device.swap_model(role, Broken("memory-2")).exception(LONG_S)
        assert isinstance(refused, GoldenMismatch)
    assert (device.model_version, device.shadow_version) == ("memory-1", None)
    assert device.submit(bench.work(5)).result(LONG_S).model_version == "memory-1"
    assert bench.exits == []


def test_the_shadow_scores_what_is_left_for_it(make_bench: Callable[..., Bench]) -> None:
    """Its verdicts carry its role and version; without it such work has nobody to do it."""
    bench = make_bench()
    device = bench.start(MemoryScorer())
    for_shadow = {"role": Role.SHADOW, "model_version": "memory-2"}
    orphan = device.submit(bench.work(5, **for_shadow))
    assert isinstance(orphan.exception(LONG_S), ModelReplaced)
    device.swap_model(Role.SHADOW, MemoryScorer("memory-2")).result(LONG_S)
    assert (device.model_version, device.shadow_version) == ("memory-1", "memory-2")
    work = bench.work(6, **for_shadow)
    verdict = device.submit(work).result(LONG_S)
    assert (verdict.role, verdict.model_version) == (Role.SHADOW, "memory-2")
    assert bench.state(work) is State.PENDING
    device.swap_model(Role.SHADOW, None).result(LONG_S)
    assert device.shadow_version is None


def test_a_fault_of_the_shadow_is_no_fault_of_the_device(make_bench: Callable[..., Bench]) -> None:
    """A challenger that raises on everything costs its own verdicts and nothing else."""
    broken = threading.Event()

    def fail(_: Sequence[NDArray[np.uint8]]) -> None:
        if broken.is_set():
            raise ZeroDivisionError

    bench = make_bench()
    device = bench.start(MemoryScorer())
    device.swap_model(Role.SHADOW, MemoryScorer("memory-2", before=fail)).result(LONG_S)
    broken.set()
    lost = device.submit(bench.work(5, role=Role.SHADOW, model_version="memory-2"))
    assert isinstance(lost.exception(LONG_S), ZeroDivisionError)
    assert device.submit(bench.work(6)).exception(LONG_S) is None
    assert bench.exits == []
