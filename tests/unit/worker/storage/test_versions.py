"""Versions and conditional removal at stores that know neither."""

from __future__ import annotations

from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

import pytest

from tests.support.http_server import HttpServer
from worker.storage.interface import ObjectReplaced
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Status and body.
Answer = tuple[int, bytes]

FINE: Answer = (200, b"")
NOT_IMPLEMENTED: Answer = (501, b"<Error><Code>NotImplemented</Code></Error>")
INVALID: Answer = (400, b"<Error><Code>InvalidRequest</Code></Error>")
EMPTY: Answer = (200, b"<ListVersionsResult><IsTruncated>false</IsTruncated></ListVersionsResult>")
LISTED: Answer = (
    200,
    (
        b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>k</Key><Size>7</Size>"
        b"<LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;e&quot;</ETag></Contents>"
        b"</ListBucketResult>"
    ),
)


@contextmanager
def storage(*answers: Answer) -> Iterator[tuple[S3Storage, list[str]]]:
    """Serve the answers one after the other; also return the methods and conditions asked with."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, body = answers[len(asked)]
            asked.append(f"{self.command} {self.headers.get('If-Match', '')}".strip())
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def do_DELETE(self) -> None:
            self.answer()

    with HttpServer(Handler) as server, closing(S3Storage(server.s3_settings())) as s3:
        yield s3, asked


@pytest.mark.parametrize("answer", [NOT_IMPLEMENTED, EMPTY])
def test_a_store_without_a_listing_of_versions_lists_what_is_current(answer: Answer) -> None:
    """A store that refuses the request, or names versions in its own way, hides no object."""
    with storage(answer, LISTED) as (s3, _):
        (found,) = s3.versions_of("b", "k")
    assert (found.key, found.etag, found.version_id, found.latest) == ("k", "e", None, True)


@pytest.mark.parametrize("answer", [NOT_IMPLEMENTED, INVALID])
def test_a_store_without_conditions_on_removal_is_asked_before(answer: Answer) -> None:
    """HEAD compares, If-Match is tried, and only then the object goes without a condition."""
    with storage(FINE, answer, FINE) as (s3, asked):
        s3.delete("b", "k", etag="e")
    assert asked == ["HEAD", 'DELETE "e"', "DELETE"]


def test_another_object_is_not_removed() -> None:
    """What HEAD says decides, before any removal is asked for."""
    with storage(FINE) as (s3, asked), pytest.raises(ObjectReplaced):
        s3.delete("b", "k", etag="another")
    assert asked == ["HEAD"]


def test_what_storage_never_tagged_is_compared_and_removed_without_a_condition() -> None:
    """A stand-in for an etag is nothing that a store could compare."""
    with storage(FINE) as (s3, asked), pytest.raises(ObjectReplaced):
        s3.delete("b", "k", etag="modified:1767323045:7")
    assert asked == ["HEAD"]
