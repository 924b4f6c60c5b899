"""What uploaders choose (keys, names, bytes) is data everywhere: in SQL, in logs, on terminals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from tests.support.processes.worker_process import WorkerProcess
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.ingest.events import own_event, parse
from worker.ledger.interface import State, Upload
from worker.queue import names as queues

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings

#: Clears the screen, names the window, colours, turns the reading direction, forges a line.
TERMINAL = "\x1b[2J\x1b]0;mine\x07\x9b31m\N{RIGHT-TO-LEFT OVERRIDE}\r\nall is well"
HOSTILE = (
    "'; DROP TABLE app.images; --",
    "$1 %s %(key)s {0} :key \\' \" ` ;",
    "${jndi:ldap://127.0.0.1/a} $(touch mine) `touch mine`",
    "/etc/passwd",
    "a//b\\..\\c",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "Ω≈ç√∫ 田中さん \N{PILE OF POO}",
    TERMINAL,
)


def test_every_name_comes_back_as_it_was(settings: Settings, engine: Engine) -> None:
    """Keys, sources and uploaders of every kind are stored and read back letter for letter."""
    site = Site(settings, engine)
    for index, name in enumerate(HOSTILE):
        upload = Upload(bucket=site.bucket, key=f"{name}.png", etag="e", source=name, uploader=name)
        (event,) = parse(own_event(upload), buckets=settings.s3.buckets)
        assert event == upload
        (registered,) = site.ledger.register([upload])
        row = site.row(registered.image_id)
        assert (row.key, row.source, row.uploader) == (f"{name}.png", name, name), index
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM app.images")) == len(HOSTILE)


def test_a_worker_takes_hostile_names_and_refuses_pickles(
    settings: Settings, engine: Engine, redis_client: Redis, tmp_path: Path
) -> None:
    """Images end whatever they are called, no log line is forged, and no message is executed."""
    site = Site(settings, engine)
    touched = tmp_path / "touched"

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (touched,)

    with site.celery.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish(
            pickle.dumps(Touch()),
            routing_key=queues.SCORE,
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": queues.SCORE_TASK, "id": "1"},
        )
    images = [site.upload(f"{index}{name}.png", png(index)) for index, name in enumerate(HOSTILE)]
    broken = site.upload(f"broken{TERMINAL}.png", b"no image")
    with WorkerProcess(settings) as worker:
        worker.wait_until_ready()
        for image_id in images:
            site.wait_for(image_id)
        assert TERMINAL in site.wait_for(broken, State.FAILED).key
        waiting = settings.redis.key_prefix + queues.SCORE
        eventually(lambda: redis_client.llen(waiting) == 0, what="an empty queue")
        printed = worker.log.read_text()
    assert not touched.exists()
    assert printed.replace("\n", "").isprintable()
