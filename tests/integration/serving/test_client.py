"""The producers' wheel against a real `unlatent serve`, over its port."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import uvicorn
from sqlalchemy import text

from tests.support.upload_site import png
from tests.support.waiting import eventually
from unlatent_client import Client, Problem
from worker.localstack.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from tests.support.serving.http_service import Rig
    from worker.settings import Settings


@pytest.fixture
def url(rig: Rig) -> Iterator[str]:
    """The address of the service over a socket."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(rig.app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, what="a service that listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client of the source web."""
    with Client(url, key="web-key") as client:
        yield client


def refused(call: Callable[[], object]) -> tuple[int, str | None]:
    """Return status and reason of the problem that a call raises."""
    with pytest.raises(Problem) as caught:
        call()
    return caught.value.status, caught.value.reason


def test_images_are_checked(client: Client, url: str) -> None:
    """The answer is about the very file, evidence comes on demand, and refusals have a reason."""
    file = png(200)
    result = client.check(file, evidence=True, wait_s=20)
    assert result.image.sha256 == hashlib.sha256(file).hexdigest()
    assert (result.image.size, result.image.format) == (len(file), "PNG")
    assert (result.image.width, result.image.height) == (64, 64)
    assert 0 <= result.score <= 1
    assert result.evidence is not None
    assert result.evidence.files["preview.jpg"].startswith(b"\xff\xd8")
    assert client.check(file).evidence is None
    assert refused(lambda: client.check(b"only words")) == (415, "not_an_image")
    assert refused(lambda: client.check_object("elsewhere", "a.jpg"))[0] == 403
    with Client(url, key="stranger") as stranger:
        assert refused(lambda: stranger.check(file)) == (401, "unauthorized")


def test_uploads_are_rows_of_the_ledger(client: Client, engine: Engine, settings: Settings) -> None:
    """An id is that of a row, a repetition is the same row, and an unknown id is none."""
    bucket = settings.s3.buckets[0]
    image_id = client.submit(
        bucket=bucket, key="a.jpg", etag="e", uploader="anna", priority=True, idempotency_key="1"
    )
    with engine.connect() as connection:
        row = connection.execute(text("SELECT id, key, source, uploader FROM app.images")).one()
    assert tuple(row) == (image_id, "a.jpg", "web", "anna")
    assert client.submit(bucket=bucket, key="a.jpg", etag="e") == image_id
    reused = refused(lambda: client.submit(bucket=bucket, key="b.jpg", idempotency_key="1"))
    assert reused == (422, "idempotency_key_reused")
    status = client.get(image_id, wait_s=1)
    assert (status.id, status.state, status.verdict) == (image_id, "pending", None)
    assert not status.ended
    assert refused(lambda: client.get(UUID(int=0)))[0] == 404


def test_people_are_heard(client: Client, engine: Engine, settings: Settings) -> None:
    """An appeal arrives with its words and a report in its queue; a second appeal is refused."""
    image_id = client.submit(bucket=settings.s3.buckets[0], key="a.jpg", etag="e")
    appeal_id = client.appeal(image_id, "It is my photograph.")
    assert refused(lambda: client.appeal(image_id, "Again."))[0] == 409
    client.report(image_id, "looks generated")
    with engine.connect() as connection:
        row = connection.execute(text("SELECT appeal_id, note FROM app.appeals")).one()
        reports = text("SELECT count(*) FROM app.audit_log WHERE action = 'request_review'")
        assert connection.scalar(reports) == 1
    assert tuple(row) == (appeal_id, "It is my photograph.")
