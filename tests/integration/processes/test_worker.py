"""A real worker process on real services, with the in-memory scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from tests.support.processes.memory_worker import DIE, RAISE
from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ledger.interface import State
from worker.queue import names as queues
from worker.telemetry.health import BEAT_ALIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings


@pytest.fixture
def site(settings: Settings, engine: Engine) -> Site:
    """Return a platform on this test's own database, queue and bucket."""
    return Site(settings, engine)


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerProcess]:
    """Run a worker that is ready."""
    with WorkerProcess(settings) as process:
        yield process.wait_until_ready()


def test_an_upload_becomes_a_verdict(site: Site, worker: WorkerProcess) -> None:
    """One image goes through the whole chain, and its row says what was learnt of it."""
    image_id = site.upload("a.png", png(51))
    row = site.wait_for(image_id)
    assert (row.width, row.height, row.format) == (64, 64, "PNG")
    (verdict,) = site.verdicts(image_id)
    assert verdict.score == pytest.approx(0.2)
    assert (verdict.label, verdict.model_version, verdict.device) == ("real", "memory-1", "cpu")
    assert set(verdict.timings_ms) == {"fetch", "decode", "batch_wait", "forward"}
    assert worker.stop() == 0


def test_mixed_uploads_sent_three_times_end_once_each(site: Site, worker: WorkerProcess) -> None:
    """Sound, broken, missing and replaced uploads each end in one row with its reason."""
    sound = [site.upload(f"{index}.png", png(index, side=64 + index)) for index in range(20)]
    twin = site.upload("twin.png", png(0, side=64))
    broken = {
        site.upload("text.png", b"not an image at all"): "not_an_image",
        site.upload("empty.png", b""): "empty_file",
        site.upload("small.png", png(side=16)): "too_small",
        site.upload("cut.png", png(side=300)[:-200]): "truncated",
        site.upload("sum.png", png(7), sha256="0" * 64): "checksum_mismatch",
        site.upload("bad.png", png(9, corner=RAISE)): "scoring_failed",
        site.upload("elsewhere.png", png(8), bucket="elsewhere"): "address_not_allowed",
    }
    replaced = site.upload("replaced.png", png(1), etag="0" * 32)
    everything = [*sound, twin, *broken, replaced]
    for image_id in everything * 2:
        site.send(image_id)
    for image_id in [*sound, twin]:
        site.wait_for(image_id)
        assert len(site.verdicts(image_id)) == 1
    for image_id, reason in broken.items():
        assert site.wait_for(image_id, State.FAILED).reason == reason
        assert site.verdicts(image_id) == []
    assert site.wait_for(replaced, State.SUPERSEDED).reason == "object_replaced"
    assert worker.stop() == 0
    assert len(worker.events("verdict_stored")) == 21
    assert {event["image_id"] for event in worker.events("verdict_stored")} == {
        str(image_id) for image_id in [*sound, twin]
    }


def test_a_stopped_worker_finishes_what_it_began(site: Site, settings: Settings) -> None:
    """SIGTERM loses nothing: what was begun is done, and the next worker does the rest."""
    images = [site.upload(f"{index}.png", png(index)) for index in range(60)]
    with WorkerProcess(settings) as worker:
        eventually(lambda: bool(worker.events("verdict_stored")), what="a first verdict")
        assert worker.stop() == 0
    assert site.ledger.backlog().leased == 0
    with WorkerProcess(settings) as worker:
        for image_id in images:
            site.wait_for(image_id)
        assert worker.stop() == 0
    assert all(site.row(image_id).deaths == 0 for image_id in images)


def test_credentials_that_open_nothing_pause_the_worker(site: Site, settings: Settings) -> None:
    """An access key that expired fails no image, and the messages stay for a worker that may."""
    images = [site.upload(f"{index}.png", png(index)) for index in range(12)]
    stranger = settings.s3.model_copy(
        update={"access_key_id": SecretStr("unknown"), "denied_limit": 3}
    )
    with WorkerProcess(settings.model_copy(update={"s3": stranger})) as worker:
        eventually(lambda: bool(worker.events("consumption_changed")), what="a paused worker")
        assert len(worker.events("storage_gives_nothing")) == 1
        assert worker.stop() == 0
    assert {site.row(image_id).state for image_id in images} == {State.PENDING}
    with WorkerProcess(settings) as worker:
        for image_id in images:
            site.wait_for(image_id)
        assert worker.stop() == 0


def test_an_image_that_kills_workers_is_quarantined_and_no_other(
    site: Site, settings: Settings
) -> None:
    """Three deaths end the culprit; those that were in its batch get their verdicts."""
    hasty = settings.model_copy(
        update={"scoring": settings.scoring.model_copy(update={"lease_s": 1.5})}
    )
    culprit = site.upload("culprit.png", png(3, corner=DIE))
    innocent = [site.upload(f"{index}.png", png(index)) for index in range(6)]
    for _ in range(3):
        with WorkerProcess(hasty) as worker:
            assert worker.process.wait(60) == 139
        eventually(lambda: site.ledger.backlog().leased == 0, what="the end of the leases")
        # The sweeper's part, without waiting for twice the visibility timeout.
        for image_id in (culprit, *innocent):
            site.send(image_id)
    with WorkerProcess(settings) as worker:
        for image_id in innocent:
            site.wait_for(image_id)
        assert site.wait_for(culprit, State.QUARANTINED).reason == "killed_worker"
        assert worker.stop() == 0


def test_beat_and_the_sweeper_replace_a_lost_message(
    site: Site, settings: Settings, redis_client: Redis
) -> None:
    """An image whose message vanished is sent again once its message must be gone."""
    hasty = settings.model_copy(
        update={
            "queue": settings.queue.model_copy(
                update={"visibility_timeout_s": 1, "sweep_every_s": 0.5}
            )
        }
    )
    image_id = site.upload("lost.png", png(4))
    redis_client.delete(f"{settings.redis.key_prefix}{queues.SCORE}")
    with (
        WorkerProcess(hasty) as worker,
        WorkerProcess(hasty, module="worker", arguments=["beat"]) as beat,
    ):
        site.wait_for(image_id)
        assert worker.events("images_republished")
        assert (settings.observability.run_dir / BEAT_ALIVE).exists()
        assert beat.stop() == 0
        steps = [event["step"] for event in beat.events("start_step_ended")]
        assert steps == ["imports", "schedule"]
        assert worker.stop() == 0


def test_a_broken_golden_image_stops_the_worker_before_its_first_message(
    site: Site, settings: Settings
) -> None:
    """A worker whose model does not reproduce its golden score exits and consumes nothing."""
    image_id = site.upload("a.png", png(5))
    with WorkerProcess(settings, arguments=["--broken"]) as worker:
        assert worker.process.wait(60) == 1
        assert "golden image" in worker.log.read_text()
    assert site.row(image_id).state == State.PENDING
    assert site.ledger.backlog().leased == 0
    with WorkerProcess(settings) as worker:
        site.wait_for(image_id)
