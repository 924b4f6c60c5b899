"""What the client sends, and what it makes of the answers."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import urllib3

from tests.unit.client.conftest import APPEAL_ID, CHECKED, IMAGE_ID, SCORED
from unlatent_client import (
    CheckedImage,
    CheckResult,
    Client,
    Evidence,
    ImageStatus,
    Problem,
    ServiceError,
    UnexpectedAnswer,
    Unreachable,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.client.conftest import Service

DESCRIPTION = Path(__file__).parents[3] / "docs" / "openapi.json"


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A client of the service, with a key."""
    with Client(service.url + "/", key="secret-key") as client:
        yield client


def test_bytes_paths_and_files_are_sent_raw(
    client: Client, service: Service, tmp_path: Path
) -> None:
    """The three ways to give an image make the same request, with the key."""
    file = tmp_path / "cat.jpg"
    file.write_bytes(b"\xff\xd8\xff")
    with file.open("rb") as opened:
        for image in (b"\xff\xd8\xff", file, opened, BytesIO(b"\xff\xd8\xff")):
            client.check(image)
    assert len(service.requests) == 4
    for request in service.requests:
        assert (request.method, request.path, request.query) == ("POST", "/v1/check", {})
        assert request.body == b"\xff\xd8\xff"
        assert request.headers["Authorization"] == "Bearer secret-key"
        assert request.headers["Content-Type"] == "application/octet-stream"
        assert request.headers["Prefer"] is None


def test_a_check_returns_what_the_service_answered(client: Client) -> None:
    """Every field of the answer is in the result, and the answer itself."""
    result = client.check(b"abc")
    for name, value in CHECKED.items():
        if name != "image":
            assert getattr(result, name) == value, name
    for name, value in CHECKED["image"].items():
        assert getattr(result.image, name) == value, name
    assert result.record == CHECKED
    assert result.evidence is None


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (CheckResult, "Check"),
        (CheckedImage, "ImageFacts"),
        (Evidence, "Evidence"),
        (ImageStatus, "Image"),
        (Verdict, "Verdict"),
    ],
)
def test_records_have_the_fields_of_the_description(record: type, name: str) -> None:
    """The wheel reads every field that docs/openapi.json promises, and no other."""
    described = json.loads(DESCRIPTION.read_text())["components"]["schemas"][name]["properties"]
    read = {field.name for field in dataclasses.fields(record)}
    assert read - {"record"} == described.keys()


def test_fields_of_a_newer_service_do_no_harm(client: Client, service: Service) -> None:
    """An unknown field stays in the record."""
    service.plan(200, CHECKED | {"new": 1})
    assert client.check(b"abc").record["new"] == 1


def test_evidence_is_asked_for_and_read(client: Client, service: Service) -> None:
    """The document is handed on, and files are bytes."""
    evidence = {"document": {"tiles": [{"top": 0}]}, "files": {"map.png": "iVBORw0KGgo="}}
    service.plan(200, CHECKED | {"evidence": evidence})
    read = client.check(b"abc", evidence=True).evidence
    assert service.requests[0].query == {"evidence": ["1"]}
    assert read is not None
    assert read.document == evidence["document"]
    assert read.files == {"map.png": b"\x89PNG\r\n\x1a\n"}


def test_a_wait_is_asked_for_in_whole_seconds(client: Client, service: Service) -> None:
    """`Prefer: wait` has no fractions (RFC 7240), so that a short wait is not none."""
    client.check(b"abc", wait_s=2.5)
    client.get(IMAGE_ID, wait_s=0.2)
    check, get = service.requests
    assert check.headers["Prefer"] == "wait=3"
    assert get.query == {"wait": ["1"]}
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="wait_s"):
            client.check(b"abc", wait_s=wrong)


def test_a_connection_outlasts_the_wait(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that the service may hold a request is added to the time-out of the connection."""
    seen = []
    request = urllib3.PoolManager.request

    def noting(self: urllib3.PoolManager, *args: Any, **options: Any) -> Any:
        seen.append(options["timeout"].read_timeout)
        return request(self, *args, **options)

    monkeypatch.setattr(urllib3.PoolManager, "request", noting)
    client.get(IMAGE_ID)
    client.get(IMAGE_ID, wait_s=45)
    client.check(b"abc", wait_s=10)
    assert seen == [60, 105, 70]


def test_an_object_is_named_in_json(client: Client, service: Service) -> None:
    """A check of a stored object sends bucket, key and version, and no bytes."""
    client.check_object("uploads", "ä b.jpg", version_id="v1")
    (request,) = service.requests
    assert request.headers["Content-Type"] == "application/json"
    sent = {"bucket": "uploads", "key": "ä b.jpg", "version_id": "v1"}
    assert json.loads(request.body) == sent


def test_a_submission_sends_what_was_given(client: Client, service: Service) -> None:
    """Fields that are not given stay out, times carry their offset, the answer is the id."""
    uploaded_at = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=1)))
    image_id = client.submit(
        bucket="uploads",
        key="a.jpg",
        etag="e",
        source=None,
        priority=True,
        size=3,
        uploaded_at=uploaded_at,
        idempotency_key="hook-1",
    )
    (request,) = service.requests
    assert image_id == UUID(IMAGE_ID)
    assert json.loads(request.body) == {
        "bucket": "uploads",
        "key": "a.jpg",
        "etag": "e",
        "priority": True,
        "size": 3,
        "uploaded_at": "2026-01-31T12:00:00+01:00",
    }
    assert request.headers["Idempotency-Key"] == "hook-1"


def test_every_submission_has_an_idempotency_key(client: Client, service: Service) -> None:
    """Without one from the caller, two calls have two different keys."""
    for _ in range(2):
        client.submit(bucket="uploads", key="a.jpg")
    first, second = (request.headers["Idempotency-Key"] for request in service.requests)
    assert UUID(first) != UUID(second)


def test_the_state_of_an_image_is_read(client: Client, service: Service) -> None:
    """A verdict is read with its time; an image that waits or failed has none."""
    status = client.get(UUID(IMAGE_ID))
    assert (status.id, status.state, status.ended) == (UUID(IMAGE_ID), "scored", True)
    assert status.verdict is not None
    assert status.verdict.tier == "flag"
    assert status.verdict.scored_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert status.verdict.record == SCORED["verdict"]
    service.plan(200, SCORED | {"state": "pending", "verdict": None})
    waiting = client.get(IMAGE_ID)
    assert (waiting.ended, waiting.verdict) == (False, None)
    why = {"reason": "not_an_image", "detail": "text"}
    service.plan(200, SCORED | {"state": "failed", "verdict": None} | why)
    failed = client.get(IMAGE_ID)
    assert (failed.ended, failed.reason, failed.detail) == (True, "not_an_image", "text")


def test_appeals_and_reports_are_sent(client: Client, service: Service) -> None:
    """Both go to the image; an answer without a body is one."""
    assert client.appeal(IMAGE_ID, "It is my photograph.") == UUID(APPEAL_ID)
    client.report(IMAGE_ID, "looks generated")
    client.report(IMAGE_ID)
    sent = [(request.path.rpartition("/")[2], request.body) for request in service.requests]
    assert [(path, json.loads(body)) for path, body in sent] == [
        ("appeals", {"text": "It is my photograph."}),
        ("reports", {"text": "looks generated"}),
        ("reports", {}),
    ]


@pytest.mark.parametrize("status", [401, 404, 413, 415, 422, 500])
def test_a_refusal_says_why(client: Client, service: Service, status: int) -> None:
    """Status, reason and detail of the problem are on the exception; it is not asked again."""
    problem = {"type": "about:blank", "title": "t", "status": status, "detail": "d", "reason": "r"}
    service.plan(status, problem)
    with pytest.raises(Problem) as caught:
        client.check(b"abc")
    assert (caught.value.status, caught.value.reason, caught.value.detail) == (status, "r", "d")
    assert str(caught.value) == f"{status} r: d"
    assert len(service.requests) == 1


def test_a_proxy_may_refuse_too(client: Client, service: Service) -> None:
    """A page instead of a problem has no reason, and its beginning is the detail."""
    service.plan(413, "<h1>too large</h1>" + " " * 10_000)
    with pytest.raises(Problem, match="413 without a reason: <h1>too large</h1>") as caught:
        client.check(b"abc")
    assert caught.value.reason is None
    assert len(caught.value.detail) == 200


@pytest.mark.parametrize(
    "answer", ["<html>", {}, [], None, {**CHECKED, "image": None}, {**SCORED, "id": "x"}]
)
def test_an_answer_of_something_else_is_an_error(
    client: Client, service: Service, answer: object
) -> None:
    """What is no answer of this service is said to be none, whatever was asked."""
    asked: list[Callable[[], object]] = [
        lambda: client.check(b"abc"),
        lambda: client.submit(bucket="b", key="k"),
        lambda: client.get(IMAGE_ID),
        lambda: client.appeal(IMAGE_ID, "mine"),
    ]
    for ask in asked:
        service.plan(200, answer)
        with pytest.raises(UnexpectedAnswer):
            ask()


def test_a_redirect_is_not_followed(client: Client, service: Service) -> None:
    """The key and the image go to no other address than the one that was given."""
    service.plan(307, "moved", Location=service.url + "/elsewhere")
    with pytest.raises(Problem) as caught:
        client.check(b"abc")
    assert caught.value.status == 307
    assert len(service.requests) == 1


def test_threads_share_a_client(client: Client, service: Service) -> None:
    """Eight threads get their answers, over no more connections than threads."""
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(client.check(b"abc") for _ in range(5)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.label for result in results] == ["generated"] * 40
    assert service.connections <= 8


@pytest.mark.parametrize("image", ["cat.jpg", StringIO("abc"), bytearray(b"abc"), None, 3])
def test_what_is_no_image_is_refused_at_once(
    client: Client, service: Service, image: object
) -> None:
    """A name in text is most likely a mistake, so it is neither opened nor sent."""
    with pytest.raises(TypeError, match="bytes, as a path, or as a file"):
        client.check(image)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ValueError, match="no bytes"):
        client.check(b"")
    assert service.requests == []


@pytest.mark.parametrize(
    ("upload", "error"),
    [
        ({"bucket": "b", "key": ""}, ValueError),
        ({"bucket": "", "key": "k"}, ValueError),
        ({"bucket": "b", "key": "ä" * 513}, ValueError),
        ({"bucket": "b", "key": "\ud800"}, ValueError),
        ({"bucket": "b", "key": "k", "prio": True}, TypeError),
    ],
)
def test_an_upload_that_cannot_be_is_not_sent(
    client: Client, service: Service, upload: dict[str, Any], error: type[Exception]
) -> None:
    """Empty and too long names and misspelt fields are errors in the caller's own process."""
    with pytest.raises(error):
        client.submit(**upload)
    assert service.requests == []


def test_the_longest_key_is_sent(client: Client, service: Service) -> None:
    """1,024 bytes are S3's limit, and not one less."""
    client.submit(bucket="b", key="ä" * 512)
    assert len(service.requests) == 1


def test_ids_are_uuids(client: Client, service: Service) -> None:
    """Text that would change the path is refused."""
    with pytest.raises(ValueError, match="UUID"):
        client.get("../../metrics")
    assert service.requests == []


@pytest.mark.parametrize("address", ["", "unlatent.example", "ftp://a", "https://", "http:///v1"])
def test_an_address_must_be_one(address: str) -> None:
    """A client without a service is an error when it is built."""
    with pytest.raises(ValueError, match="address of a service"):
        Client(address)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_carries_is_not_shown(key: str) -> None:
    """The error of a bad key does not print the key."""
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Client("http://127.0.0.1:1", key=key)
    assert not key or key not in str(caught.value)


def test_no_key_sends_none(service: Service) -> None:
    """On loopback a service may do without keys."""
    with Client(service.url) as client:
        client.check(b"abc")
    assert service.requests[0].headers["Authorization"] is None


def test_a_service_that_never_answers_is_given_up(service: Service) -> None:
    """A time-out is not tried again: a second request would wait as long."""
    service.answering.clear()
    with Client(service.url, timeout_s=0.05) as client, pytest.raises(Unreachable, match="answer"):
        client.check(b"abc")
    assert len(service.requests) == 1
    assert issubclass(Unreachable, ServiceError)
