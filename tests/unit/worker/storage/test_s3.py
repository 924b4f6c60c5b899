"""Object storage over boto3 against a server that fails in every way."""

from __future__ import annotations

import socket
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

import pytest

from detection.errors import UnlatentError
from tests.support.http_server import HttpServer
from worker.settings import S3
from worker.storage.interface import (
    AccessDenied,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
    StorageUnavailable,
)
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Answer = tuple[int, str, bytes, int]  # status, code, body, announced length
BODY = bytes(range(256)) * 16


def fine(body: bytes = BODY) -> Answer:
    """Answer with a whole object."""
    return 200, "", body, len(body)


def refused(status: int, code: str) -> Answer:
    """Answer with an error."""
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    return status, code, body, len(body)


@contextmanager
def storage(*answers: Answer, **settings: object) -> Iterator[tuple[S3Storage, Callable[[], int]]]:
    """Serve the answers one after the other, the last one for ever; also count the requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, _, body, length = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", '"e"')
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            if len(body) < length:
                self.connection.shutdown(socket.SHUT_RDWR)

        do_PUT = do_DELETE = do_GET  # noqa: N815 - names that http.server looks for

    with HttpServer(Handler) as server:
        s3 = S3Storage(server.s3_settings(read_timeout_s=0.5, **settings))
        with closing(s3):
            yield s3, lambda: len(asked)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.storage.s3._FIRST_DELAY_S", 0.001)


@pytest.mark.parametrize(
    "fault",
    [
        refused(500, "InternalError"),
        refused(503, "SlowDown"),
        refused(429, "TooManyRequests"),
        refused(400, "RequestTimeout"),
        (200, "", BODY[:100], len(BODY)),  # the connection breaks in the middle of the body
        (200, "", b"", len(BODY)),
    ],
)
def test_a_passing_fault_is_tried_again(fault: Answer) -> None:
    """Two faults and then an answer: the bytes arrive whole and nobody hears of it."""
    with storage(fault, fault, fine()) as (s3, requests):
        assert s3.fetch("b", "k", max_bytes=10**6) == BODY
        assert requests() == 3


@pytest.mark.parametrize("fault", [refused(503, "SlowDown"), (200, "", BODY[:100], len(BODY))])
def test_a_fault_that_stays_is_transient(fault: Answer) -> None:
    """After three tries the image goes back to the queue; half a body is never an object."""
    with storage(fault) as (s3, requests):
        with pytest.raises(StorageUnavailable):
            s3.fetch("b", "k", max_bytes=10**6)
        assert requests() == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refused(403, "AccessDenied"), AccessDenied),
        (refused(403, "InvalidAccessKeyId"), AccessDenied),
        (refused(403, "RequestTimeTooSkewed"), AccessDenied),
        (refused(400, "ExpiredToken"), AccessDenied),
        (refused(404, "NoSuchBucket"), AccessDenied),
        (refused(404, "NoSuchKey"), ObjectMissing),
        (refused(404, "NoSuchVersion"), ObjectMissing),
        (refused(400, "KeyTooLongError"), ObjectMissing),
        (refused(412, "PreconditionFailed"), ObjectReplaced),
        (refused(400, "AuthorizationHeaderMalformed"), StorageUnavailable),
    ],
)
def test_what_time_does_not_mend_is_asked_once(answer: Answer, error: type[Exception]) -> None:
    """Permanent answers keep their meaning and are not asked for again."""
    with storage(answer) as (s3, requests):
        with pytest.raises(error):
            s3.fetch("b", "k", etag="e", max_bytes=10**6)
        assert requests() == 1


def test_a_server_that_is_away_is_transient() -> None:
    """A refused connection says nothing about the image."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    s3 = S3Storage(
        S3.model_validate(
            {
                "endpoint_url": f"http://127.0.0.1:{port}",
                "access_key_id": "k",
                "secret_access_key": "s",
                "buckets": ("b",),
            }
        )
    )
    with pytest.raises(StorageUnavailable):
        s3.fetch("b", "k", max_bytes=1)


def test_a_silent_server_is_transient() -> None:
    """A server that accepts and never answers costs the read time-out, not the thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        s3 = S3Storage(
            S3.model_validate(
                {
                    "endpoint_url": f"http://127.0.0.1:{server.getsockname()[1]}",
                    "access_key_id": "k",
                    "secret_access_key": "s",
                    "buckets": ("b",),
                    "read_timeout_s": 0.1,
                }
            )
        )
        with pytest.raises(StorageUnavailable):
            s3.fetch("b", "k", max_bytes=1)
        s3.close()


def test_an_announced_length_over_the_limit_is_not_downloaded() -> None:
    """The limit holds before the body as well as in it."""
    with storage((200, "", b"", 10**12)) as (s3, requests):
        with pytest.raises(ObjectTooLarge):
            s3.fetch("b", "k", max_bytes=10**6)
        assert requests() == 1


def test_keys_reach_the_server_as_they_are() -> None:
    """A key with every awkward character is one path under its bucket."""
    asked: list[str] = []
    with storage(fine()) as (s3, _):
        s3._client.meta.events.register(
            "before-send", lambda request, **_: asked.append(request.url)
        )
        s3.fetch("b", "a b/ü?x=1&y#z%2F", max_bytes=10**6)
    assert asked[0].partition("/b/")[2] == "a%20b/%C3%BC%3Fx%3D1%26y%23z%252F"


@pytest.mark.parametrize(
    "answer",
    [
        refused(503, "SlowDown"),
        refused(403, "AccessDenied"),
        refused(404, "NoSuchBucket"),
        refused(404, "NoSuchKey"),
        refused(412, "PreconditionFailed"),
        refused(400, "AuthorizationHeaderMalformed"),
    ],
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda s3: s3.fetch("b", "some/key.jpg", etag="e", max_bytes=10**6),
        lambda s3: s3.head("b", "some/key.jpg"),
        lambda s3: s3.put("b", "some/key.jpg", b"", content_type="image/png"),
        lambda s3: list(s3.list("b", prefix="some/key.jpg")),
    ],
)
def test_an_error_says_which_object_it_is_of(
    answer: Answer, ask: Callable[[S3Storage], object]
) -> None:
    """Whatever storage answers, to whatever call, the error begins with bucket and key, once."""
    named = pytest.raises(UnlatentError, match=r"^s3://b/some/key\.jpg: [^:]*$")
    with storage(answer) as (s3, _), named:
        ask(s3)


def test_a_refused_removal_says_which_object_it_is_of() -> None:
    """Only an object that is not there is no error: it needs no removal."""
    named = pytest.raises(UnlatentError, match=r"^s3://b/some/key\.jpg: [^:]*$")
    with storage(refused(403, "AccessDenied")) as (s3, _), named:
        s3.delete("b", "some/key.jpg")
    with storage(refused(404, "NoSuchKey")) as (s3, _):
        s3.delete("b", "some/key.jpg")


@pytest.mark.parametrize("answer", [(200, "", BODY[:100], len(BODY)), (200, "", b"", 10**12)])
def test_an_error_in_the_body_says_which_object_it_is_of(answer: Answer) -> None:
    """A body that breaks off and one that is too large are named as well."""
    with storage(answer) as (s3, _), pytest.raises(UnlatentError, match=r"^s3://b/some/key\.jpg: "):
        s3.fetch("b", "some/key.jpg", max_bytes=10**6)
