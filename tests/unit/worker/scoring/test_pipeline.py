"""The check of one image, on the in-memory twins."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest

from detection.errors import TransientError
from detection.intake.animation import ShownFrame
from detection.intake.errors import Truncated
from tests.support.trace_collector import Collector, attributes
from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable, SchemaOutdated
from worker.decoding.pool import Decoded
from worker.ledger.interface import ImageFacts, Lease, LeaseOutcome, Role, State, Upload
from worker.ledger.memory import MemoryLedger
from worker.scoring.device.verdict_store import VerdictStore
from worker.scoring.device_thread import InferenceThread, ModelReplaced
from worker.scoring.memory import MemoryScorer
from worker.scoring.pipeline import Pipeline
from worker.scoring.storage_breaker import DenialUndecided, OutageSuspected, StorageBreaker
from worker.settings import Settings, Tracing
from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    ObjectArchived,
    StorageForbidden,
    StorageUnavailable,
)
from worker.storage.memory import MemoryStorage
from worker.telemetry.health import Health
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import build_tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID


class InlineDecoder:
    """Takes the first byte of a file for its brightness."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def decode(self, data: bytes, **told: Any) -> Decoded:
        """Decode without a process."""
        self.told.append(told)
        if data == b"truncated":
            raise Truncated
        if data == b"bug":
            raise ZeroDivisionError
        return Decoded(
            (ShownFrame(0, 1.0, np.full((64, 64, 3), data[0], np.uint8)),),
            ImageFacts(
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
                format="PNG",
                width=64,
                height=64,
            ),
        )


class Rig:
    """A pipeline with everything in memory."""

    def __init__(self, folder: Path) -> None:
        self.ledger = MemoryLedger()
        self.storage = MemoryStorage(["b"])
        self.decoder = InlineDecoder()
        self.scorer = MemoryScorer()
        self.metrics = Metrics()
        self.paused: list[bool] = []
        self.waiting = 0
        self.resumed = threading.Event()
        settings = Settings.model_validate(
            {
                "scoring": {"max_wait_s": 0, "max_batch": 2, "shadow_share": 1},
                "s3": {"unreadable_tries": 6},
            }
        )
        health = Health(folder)
        verdicts = VerdictStore(self.ledger, health=health, metrics=self.metrics)
        self.device = InferenceThread(
            lambda: self.scorer,
            conclude=verdicts.store,
            settings=settings.scoring,
            beat=health.beat,
            metrics=self.metrics,
        )
        self.device.start()
        self.scorer.batches.clear()
        self.breaker = StorageBreaker(
            self.storage,
            limit=3,
            pause=lambda: self.paused.append(True),
            resume=self.resumed.set,
            probe_every_s=0.02,
        )
        self.pipeline = Pipeline(
            ledger=self.ledger,
            storage=self.storage,
            decoder=self.decoder,
            device=self.device,
            breaker=self.breaker,
            metrics=self.metrics,
            settings=settings,
            worker="w",
            waiting=lambda: self.waiting,
        )

    def upload(self, key: str, body: bytes | None = b"\x33", **fields: Any) -> UUID:
        """Store and register an object; no body registers one that is not there."""
        etag = "absent"
        if body is not None:
            etag = self.storage.put("b", key, body, content_type="image/png").etag
        upload = Upload(**{"bucket": "b", "key": key, "etag": etag, **fields})
        return self.ledger.register([upload])[0].image_id

    def image(self, image_id: UUID) -> Any:
        """Return what the ledger knows of an image."""
        return self.ledger.images[image_id]

    def outcomes(self, image_id: UUID) -> list[LeaseOutcome | None]:
        """Return how each lease of an image was closed."""
        return [
            lease.outcome for lease in self.ledger.leases.values() if lease.image_id == image_id
        ]

    def count(self, name: str, **labels: str) -> float:
        """Return a metric."""
        return self.metrics.registry.get_sample_value(f"unlatent_{name}", labels) or 0.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a pipeline whose device is stopped in the end."""
    rig = Rig(tmp_path)
    yield rig
    rig.pipeline.stop()
    rig.breaker.stop()
    rig.device.stop()


def test_a_check_ends_with_a_verdict_and_a_closed_lease(rig: Rig) -> None:
    """A sound upload is scored once, and a second message for it does nothing."""
    image_id = rig.upload("a.png", content_type="image/png", sha256="c" * 64)
    rig.pipeline.score(image_id)
    rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.SCORED
    assert rig.outcomes(image_id) == [LeaseOutcome.SCORED]
    assert rig.scorer.batches == [1]
    told = rig.decoder.told[0]
    assert (told["declared_type"], told["key"], told["sha256"]) == ("image/png", "a.png", "c" * 64)
    assert rig.count("verdicts_total", label="real", model_version="memory-1", role="champion") == 1
    assert rig.count("messages_total", kind="scored") == 1


@pytest.mark.parametrize(
    ("body", "fields", "state", "reason"),
    [
        (b"truncated", {}, State.FAILED, "truncated"),
        (b"bug", {}, State.FAILED, "internal_error"),
        (None, {}, State.FAILED, "object_missing"),
        (b"x", {"etag": "older"}, State.SUPERSEDED, "object_replaced"),
        (b"x", {"bucket": "elsewhere"}, State.FAILED, "address_not_allowed"),
    ],
)
def test_a_permanent_fault_ends_the_image_with_its_reason(
    rig: Rig, body: bytes | None, fields: dict[str, Any], state: State, reason: str
) -> None:
    """Each fault of an image ends its row, closes its lease and acknowledges its message."""
    image_id = rig.upload("a.png", body, **fields)
    rig.pipeline.score(image_id)
    assert (rig.image(image_id).state, rig.image(image_id).reason) == (state, reason)
    assert rig.outcomes(image_id) == [LeaseOutcome(state.value)]
    assert rig.count("failures_total", reason=reason) == 1


def test_a_transient_fault_gives_the_image_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that is away leaves the row pending, the lease closed and no death."""
    image_id = rig.upload("a.png")

    def away(*_: object, **__: object) -> bytes:
        raise StorageUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(rig.storage, "fetch", away)
        with pytest.raises(StorageUnavailable):
            rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.PENDING
    assert rig.outcomes(image_id) == [LeaseOutcome.RETRY]
    rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.SCORED


def test_a_schema_that_is_too_old_gives_the_image_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the verdict cannot be written to is no fault of the image: it stays pending."""

    def refuse(_: object) -> None:
        raise SchemaOutdated

    image_id = rig.upload("a.png")
    with monkeypatch.context() as outdated:
        outdated.setattr(rig.ledger, "record", refuse)
        with pytest.raises(SchemaOutdated, match="unlatent migrate"):
            rig.pipeline.score(image_id)
    assert rig.image(image_id).state is State.PENDING
    rig.pipeline.score(image_id)
    assert rig.outcomes(image_id) == [LeaseOutcome.RETRY, LeaseOutcome.SCORED]


def test_an_image_leased_elsewhere_is_left_alone(rig: Rig) -> None:
    """A second message for an image under way is acknowledged."""
    image_id = rig.upload("a.png")
    other = rig.ledger.lease(image_id, worker="other", duration=timedelta(minutes=1))
    assert isinstance(other, Lease)
    rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.PENDING
    assert rig.scorer.batches == []
    assert rig.count("messages_total", kind="busy") == 1


def test_an_unknown_id_is_acknowledged(rig: Rig) -> None:
    """A message for a row that is not there cannot be worked on, ever."""
    rig.pipeline.score(uuid4())
    assert rig.count("messages_total", kind="unknown") == 1


def test_the_same_bytes_are_not_scored_again(rig: Rig) -> None:
    """A second upload of one file takes over the first one's verdict and says so."""
    first, second = rig.upload("a.png", b"same"), rig.upload("b.png", b"same")
    rig.pipeline.score(first)
    rig.pipeline.score(second)
    assert rig.scorer.batches == [1]
    assert rig.image(second).state == State.SCORED
    verdict = rig.ledger.verdicts[second, "memory-1"]
    assert verdict.reused_from == first
    assert verdict.score == rig.ledger.verdicts[first, "memory-1"].score
    assert rig.count("verdicts_reused_total") == 1


def test_images_that_cannot_be_judged_are_counted_by_kind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands before the colon of the reason is counted, and the reason is in the row."""
    score = rig.scorer.score
    why = "too small: smaller than the 128 pixels"
    monkeypatch.setattr(
        rig.scorer, "score", lambda images: [replace(told, outside=why) for told in score(images)]
    )
    image = rig.upload("a.png", b"\x33")
    rig.pipeline.score(image)
    assert rig.ledger.verdicts[image, "memory-1"].outside == why
    counted = rig.metrics.registry.get_sample_value(
        "unlatent_verdicts_inapplicable_total", {"reason": "too small"}
    )
    assert counted == 1


def test_a_ledger_that_is_away_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of the ledger at the lease and at the outcome costs neither image nor lease."""
    image_id = rig.upload("a.png", b"truncated")
    lease, end = rig.ledger.lease, rig.ledger.end
    failures = {"lease": 2, "end": 2}

    def flaky(name: str, call: Any) -> Any:
        def once(*positional: object, **named: object) -> object:
            if failures[name]:
                failures[name] -= 1
                raise LedgerUnavailable
            return call(*positional, **named)

        return once

    monkeypatch.setattr("worker.scoring.leases._FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(rig.ledger, "lease", flaky("lease", lease))
    monkeypatch.setattr(rig.ledger, "end", flaky("end", end))
    rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.FAILED
    assert rig.outcomes(image_id) == [LeaseOutcome.FAILED]


def test_one_denied_object_among_others_fails(rig: Rig) -> None:
    """A denial beside objects that can be read is the object's own fault."""
    rig.pipeline.score(rig.upload("fine.png"))
    rig.storage.denied.add("denied.png")
    image_id = rig.upload("denied.png")
    rig.pipeline.score(image_id)
    assert rig.image(image_id).reason == "access_denied"
    assert rig.paused == []


def test_a_lonely_denial_is_tried_three_times(rig: Rig) -> None:
    """With nothing to compare it to, a denied object gets two more tries before it fails."""
    rig.storage.denied.add("denied.png")
    image_id = rig.upload("denied.png")
    for _ in range(2):
        with pytest.raises(DenialUndecided):
            rig.pipeline.score(image_id)
    rig.pipeline.score(image_id)
    assert rig.image(image_id).reason == "access_denied"


@pytest.mark.parametrize("read_before", [True, False])
def test_denials_of_everything_pause_the_worker(rig: Rig, *, read_before: bool) -> None:
    """Expired credentials fail no image: the worker pauses until they are good again."""
    if read_before:
        rig.pipeline.score(rig.upload("fine.png"))
    rig.storage.all_denied = True
    images = [rig.upload(f"{index}.png") for index in range(5)]
    for image_id in images[:2]:
        with pytest.raises(DenialUndecided):
            rig.pipeline.score(image_id)
    for image_id in images[2:]:
        with pytest.raises(StorageForbidden):
            rig.pipeline.score(image_id)
    assert rig.paused == [True]
    assert rig.breaker.is_open
    assert [rig.image(image_id).state for image_id in images] == [State.PENDING] * 5
    assert rig.outcomes(images[2]) == [LeaseOutcome.RELEASED]
    assert rig.outcomes(images[4]) == []  # not even leased
    rig.storage.all_denied = False
    assert rig.resumed.wait(10)
    for image_id in images:
        rig.pipeline.score(image_id)
    assert [rig.image(image_id).state for image_id in images] == [State.SCORED] * 5


class Failing:
    """Stands before a storage and fails as told, for some keys or for all."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: dict[str, Exception] = {}
        self.everything: Exception | None = None
        fetch = rig.storage.fetch

        def failing(bucket: str, key: str, **named: Any) -> bytes:
            error = self.everything or self.keys.get(key)
            if error is not None:
                raise error
            return fetch(bucket, key, **named)

        monkeypatch.setattr(rig.storage, "fetch", failing)


def tries_until_the_end(rig: Rig, image_id: UUID, *, at_most: int = 50) -> int:
    """Check an image until it has ended; return how often it was tried."""
    for tries in range(1, at_most + 1):
        with suppress(TransientError):
            rig.pipeline.score(image_id)
        if rig.image(image_id).state is not State.PENDING:
            return tries
    return at_most + 1


@pytest.mark.parametrize(
    ("error", "tries"), [(StorageUnavailable("503"), 6), (AnswerUnusable("400"), 3)]
)
def test_an_object_that_storage_never_gives_ends_its_image(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    """Beside an object that is given, tries count; the last one ends the image with its reason."""
    failing = Failing(rig, monkeypatch)
    rig.pipeline.score(rig.upload("fine.png"))
    image_id = rig.upload("odd.png", b"\x44")
    failing.keys["odd.png"] = error
    assert tries_until_the_end(rig, image_id) == tries
    image = rig.image(image_id)
    assert (image.state, image.reason) == (State.FAILED, "storage_unreadable")
    assert str(error) in image.detail
    assert rig.count("failures_total", reason="storage_unreadable") == 1
    assert rig.outcomes(image_id)[:-1] == [LeaseOutcome.UNREADABLE] * (tries - 1)
    assert rig.paused == []
    # Reopened, it has its whole budget again.
    rig.ledger.reopen(reason="storage_unreadable", since=datetime(2020, 1, 1, tzinfo=UTC), limit=9)
    assert tries_until_the_end(rig, image_id) == tries
    failing.keys.clear()
    rig.ledger.reopen(reason="storage_unreadable", since=datetime(2020, 1, 1, tzinfo=UTC), limit=9)
    rig.pipeline.score(image_id)
    assert rig.image(image_id).state is State.SCORED


def test_an_unusable_answer_alone_ends_its_image_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing to compare it to it is tried a few times more, not for ever."""
    Failing(rig, monkeypatch).everything = AnswerUnusable("301")
    image_id = rig.upload("odd.png")
    assert tries_until_the_end(rig, image_id) == 5
    assert rig.image(image_id).reason == "storage_unreadable"


@pytest.mark.parametrize("error", [StorageUnavailable("away"), AnswerUnusable("301")])
@pytest.mark.parametrize("read_before", [True, False])
def test_storage_that_gives_nothing_costs_no_tries(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception, *, read_before: bool
) -> None:
    """An outage pauses the worker: however often images are sent, none ends and none is scored."""
    if read_before:
        rig.pipeline.score(rig.upload("fine.png"))
    failing = Failing(rig, monkeypatch)
    failing.everything = error
    images = [rig.upload(f"{index}.png") for index in range(8)]
    for _ in range(40):
        for image_id in images:
            with pytest.raises((OutageSuspected, StorageForbidden)):
                rig.pipeline.score(image_id)
    assert rig.paused == [True]
    assert all(LeaseOutcome.UNREADABLE not in rig.outcomes(image_id) for image_id in images)
    assert sum(len(rig.outcomes(image_id)) for image_id in images) == 3
    failing.everything = None
    assert rig.resumed.wait(10)
    for image_id in images:
        rig.pipeline.score(image_id)
        assert rig.image(image_id).state is State.SCORED


def test_an_outage_of_a_single_image_ends_by_time_only(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few images to pause over: each waits out the outage, up to the hours of the settings."""
    Failing(rig, monkeypatch).everything = StorageUnavailable("away")
    image_id = rig.upload("a.png")
    assert tries_until_the_end(rig, image_id) == 51
    first = next(iter(rig.ledger.leases.values()))
    first.since -= timedelta(hours=25)
    rig.image(image_id).state_since -= timedelta(hours=25)
    assert tries_until_the_end(rig, image_id) == 1
    assert rig.image(image_id).reason == "storage_unreadable"


def test_archived_objects_end_and_do_not_pause(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What storage says of an object is no trouble with storage."""
    failing = Failing(rig, monkeypatch)
    failing.everything = ObjectArchived()
    for image_id in [rig.upload(f"{index}.png") for index in range(10)]:
        rig.pipeline.score(image_id)
        assert rig.image(image_id).reason == "object_archived"
    assert rig.paused == []


def test_objects_in_trouble_do_not_pause_a_worker_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that met only objects it may not read tries others, and finds what it can read."""
    failing = Failing(rig, monkeypatch)
    rig.breaker._trial_s = 0.05
    denied = [rig.upload(f"denied-{index}.png") for index in range(3)]
    failing.keys = {f"denied-{index}.png": AccessDenied() for index in range(3)}
    for image_id in denied:
        with pytest.raises((DenialUndecided, StorageForbidden)):
            rig.pipeline.score(image_id)
    assert rig.breaker.is_paused
    assert rig.resumed.wait(10)
    assert rig.breaker.is_open  # nothing is known yet
    with pytest.raises(DenialUndecided):
        rig.pipeline.score(denied[0])
    rig.pipeline.score(rig.upload("fine.png"))
    assert not rig.breaker.is_open
    for image_id in denied:
        rig.pipeline.score(image_id)
        assert rig.image(image_id).reason == "access_denied"


def test_in_a_trial_the_next_object_in_trouble_pauses_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One object that was not known to be in trouble is enough the second time."""
    failing = Failing(rig, monkeypatch)
    failing.everything = AccessDenied()
    rig.breaker._trial_s = 0.05
    for index in range(3):
        with pytest.raises((DenialUndecided, StorageForbidden)):
            rig.pipeline.score(rig.upload(f"{index}.png"))
    assert rig.resumed.wait(10)
    image_id = rig.upload("other.png")
    with pytest.raises(StorageForbidden):
        rig.pipeline.score(image_id)
    assert rig.paused == [True, True]
    assert rig.image(image_id).state is State.PENDING


def test_rescoring_adds_a_verdict_and_keeps_the_state(rig: Rig) -> None:
    """A scored image gets another model version's verdict; failing to does not unscore it."""
    image_id = rig.upload("a.png")
    rig.pipeline.score(image_id)
    rig.scorer.model_version = "memory-2"
    rig.storage.delete("b", "a.png")
    rig.pipeline.rescore(image_id)
    assert rig.image(image_id).state == State.SCORED
    rig.storage.put("b", "a.png", b"\x33", content_type="image/png")
    rig.pipeline.rescore(image_id)
    assert (image_id, "memory-2") in rig.ledger.verdicts
    assert rig.image(image_id).state == State.SCORED


def test_shutdown_fails_what_waits_as_transient(rig: Rig) -> None:
    """An image that meets a stopping device goes back to pending."""
    image_id = rig.upload("a.png")
    rig.device.stop()
    with pytest.raises(TransientError):
        rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.PENDING
    assert rig.outcomes(image_id) == [LeaseOutcome.RETRY]


def test_a_suspect_is_checked_while_no_other_lease_is_held(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image with a death waits, without a lease, until the checks under way have ended."""
    suspect, ordinary = rig.upload("suspect.png"), rig.upload("ordinary.png", b"\x10")
    died = rig.ledger.lease(suspect, worker="dead", duration=timedelta(0))
    assert isinstance(died, Lease)
    fetch, held, begun, free = rig.storage.fetch, [], threading.Event(), threading.Event()

    def watched(bucket: str, key: str, **named: Any) -> bytes:
        held.append((key, sum(lease.live for lease in rig.ledger.leases.values())))
        if key == "ordinary.png":
            begun.set()
            assert free.wait(10)
        return fetch(bucket, key, **named)

    monkeypatch.setattr(rig.storage, "fetch", watched)
    threads = [
        threading.Thread(target=rig.pipeline.score, args=[image_id])
        for image_id in (ordinary, suspect)
    ]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    eventually(lambda: LeaseOutcome.RELEASED in rig.outcomes(suspect))
    free.set()
    for thread in threads:
        thread.join(10)
    assert held == [("ordinary.png", 1), ("suspect.png", 1)]
    assert rig.image(suspect).state == State.SCORED
    assert rig.decoder.told[-1]["alone"] is True


def test_a_challenger_in_shadow_judges_after_the_champion(rig: Rig) -> None:
    """Both verdicts are there, each with its role, and the challenger's lease is closed."""
    rig.device.swap_model(Role.SHADOW, MemoryScorer("memory-2")).result(10)
    image_id = rig.upload("a.png")
    rig.pipeline.score(image_id)
    verdicts = {version: v.role for (_, version), v in rig.ledger.verdicts.items()}
    assert verdicts == {"memory-1": Role.CHAMPION, "memory-2": Role.SHADOW}
    assert rig.image(image_id).state == State.SCORED
    assert rig.outcomes(image_id) == [LeaseOutcome.SCORED, LeaseOutcome.SCORED]
    assert rig.count("shadow_checks_total", outcome="scored") == 1


def test_a_failing_challenger_costs_no_image(rig: Rig) -> None:
    """The image keeps its verdict, its message is acknowledged, and the lease is no death."""
    broken = threading.Event()

    def fail(_: Any) -> None:
        if broken.is_set():
            raise ZeroDivisionError

    rig.device.swap_model(Role.SHADOW, MemoryScorer("memory-2", before=fail)).result(10)
    broken.set()
    image_id = rig.upload("a.png")
    rig.pipeline.score(image_id)
    assert rig.image(image_id).state == State.SCORED
    assert rig.outcomes(image_id) == [LeaseOutcome.SCORED, LeaseOutcome.RELEASED]
    assert rig.count("shadow_checks_total", outcome="failed") == 1


@pytest.mark.parametrize("where", ["device", "queue"])
def test_under_load_the_shadow_is_dropped_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While images wait for a batch or for a worker, the challenger takes not even a lease."""
    rig.device.swap_model(Role.SHADOW, MemoryScorer("memory-2")).result(10)
    monkeypatch.setattr(InferenceThread, "busy", where == "device")
    rig.waiting = int(where == "queue")
    image_id = rig.upload("a.png")
    rig.pipeline.score(image_id)
    assert rig.outcomes(image_id) == [LeaseOutcome.SCORED]
    assert rig.count("shadow_checks_total", outcome="dropped") == 1


def test_a_rescore_that_meets_another_model_is_tried_again(rig: Rig) -> None:
    """A lease for one version never ends with another's verdict; the next try asks anew."""
    image_id = rig.upload("a.png")
    rig.pipeline.score(image_id)
    rig.device.swap_model(Role.CHAMPION, MemoryScorer("memory-2")).result(10)

    def overtaken(*_: object, **__: object) -> Decoded:
        rig.device.swap_model(Role.CHAMPION, MemoryScorer("memory-3")).result(10)
        return decode(b"\x33")

    decode, rig.decoder.decode = rig.decoder.decode, overtaken  # type: ignore[method-assign]
    with pytest.raises(ModelReplaced):
        rig.pipeline.rescore(image_id)
    assert rig.outcomes(image_id) == [LeaseOutcome.SCORED, LeaseOutcome.RETRY]
    rig.decoder.decode = decode  # type: ignore[method-assign]
    rig.pipeline.rescore(image_id)
    assert {version for _, version in rig.ledger.verdicts} == {"memory-1", "memory-3"}


def test_a_check_is_measured_stage_by_stage(rig: Rig) -> None:
    """What reuses a verdict or ends without one has fewer stages, and says how it ended."""
    images = [rig.upload(f"{body!r}.png", body) for body in (b"same", b"truncated")]
    images.insert(1, rig.upload("twin.png", b"same"))
    stages: list[list[str]] = []
    ended: list[dict[str, str | int]] = []
    for image_id in images:
        with Collector() as collector:
            tracer = build_tracer(Tracing(endpoint=collector.url), service="s")
            rig.pipeline._telemetry._tracer = tracer
            with tracer.span("check"):
                rig.pipeline.score(image_id)
            tracer.close()
            stages.append([span.name for _, span in collector.delivered()])
            ended.append(attributes(collector.spans()["check"]))
    assert stages == [
        ["check", "fetch", "decode", "batch", "forward", "persist"],
        ["check", "fetch", "decode", "persist"],
        ["check", "fetch", "decode"],
    ]
    scored = {"unlatent.attempt": 1, "unlatent.model_version": "memory-1"}
    assert ended == [scored, scored, {"unlatent.attempt": 1, "unlatent.reason": "truncated"}]
