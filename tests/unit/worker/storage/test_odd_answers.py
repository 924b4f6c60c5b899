"""Object storage over boto3 against stores that leave things out and add things."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from tests.support.faults.odd_store import Answer, OddStore, refusal
from worker.storage.interface import (
    AccessDenied,
    AnswerUnusable,
    ObjectArchived,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
)
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BODY = bytes(range(256)) * 16
FIRST = "Wed, 21 Oct 2026 07:28:00 GMT"
LATER = "Wed, 21 Oct 2026 07:28:01 GMT"
LIMIT = 10**6


@pytest.fixture
def store() -> Iterator[OddStore]:
    """A store that answers as the test says."""
    with OddStore() as store:
        yield store


@pytest.fixture
def s3(store: OddStore) -> Iterator[S3Storage]:
    """The service's client of that store."""
    client = S3Storage(store.settings())
    yield client
    client.close()


@pytest.mark.parametrize("length", ["size", "chunks", "close"])
def test_a_length_that_is_not_told_costs_nothing_but_the_limit(
    store: OddStore, s3: S3Storage, length: str
) -> None:
    """Without Content-Length the size is unknown, and the download ends at the limit."""
    store.answers["k"] = Answer(headers={"ETag": '"e"'}, body=BODY, length=length)
    assert s3.head("b", "k").size == (len(BODY) if length == "size" else None)
    assert s3.fetch("b", "k", etag="e", max_bytes=len(BODY)) == BODY
    with pytest.raises(ObjectTooLarge):
        s3.fetch("b", "k", etag="e", max_bytes=len(BODY) - 1)


def test_an_object_without_a_tag_is_known_by_its_date_and_size(
    store: OddStore, s3: S3Storage
) -> None:
    """A later object or one of another size is another upload, and the fetch finds it replaced."""
    store.answers["k"] = Answer(headers={"Last-Modified": FIRST}, body=BODY)
    first = s3.head("b", "k").etag
    assert first is not None
    assert s3.fetch("b", "k", etag=first, max_bytes=LIMIT) == BODY
    assert store.conditions == [None]
    for successor in (
        Answer(headers={"Last-Modified": LATER}, body=BODY),
        Answer(headers={"Last-Modified": FIRST}, body=BODY[:-1]),
    ):
        store.answers["k"] = successor
        assert s3.head("b", "k").etag != first
        with pytest.raises(ObjectReplaced):
            s3.fetch("b", "k", etag=first, max_bytes=LIMIT)
    # The same object, whose size only one of the two answers tells.
    store.answers["k"] = Answer(headers={"Last-Modified": FIRST}, body=BODY, length="chunks")
    assert s3.fetch("b", "k", etag=first, max_bytes=LIMIT) == BODY


def test_an_object_without_tag_and_date_has_no_identity(store: OddStore, s3: S3Storage) -> None:
    """Nothing is made up where storage says nothing; fetching still works."""
    store.answers["k"] = Answer(body=BODY)
    assert s3.head("b", "k").etag is None
    assert s3.fetch("b", "k", etag="of-the-event", max_bytes=LIMIT) == BODY


def conditional(tag: str, refused: int) -> Answer:
    """Refuse every condition, as strong comparison does with a weak tag."""

    def answer(_: str, headers: Mapping[str, str]) -> Answer:
        if headers.get("If-Match"):
            return refusal(refused, "PreconditionFailed" if refused == 412 else "NotImplemented")
        return Answer(headers={"ETag": tag} if tag else {}, body=BODY)

    return answer  # type: ignore[return-value]  # a store takes either


@pytest.mark.parametrize("refused", [412, 501])
def test_a_weak_tag_matches_its_strong_form(store: OddStore, s3: S3Storage, refused: int) -> None:
    """W/"e" and "e" are one object, though no condition with a weak tag is ever met."""
    store.answers["k"] = conditional('W/"e"', refused)
    assert s3.head("b", "k").etag == "e"
    assert s3.fetch("b", "k", etag="e", max_bytes=LIMIT) == BODY
    with pytest.raises(ObjectReplaced):
        s3.fetch("b", "k", etag="other", max_bytes=LIMIT)


def test_a_condition_that_is_not_met_counts_where_there_is_no_tag(
    store: OddStore, s3: S3Storage
) -> None:
    """A store that compares and hides its tags is believed."""
    store.answers["k"] = conditional("", 412)
    with pytest.raises(ObjectReplaced):
        s3.fetch("b", "k", etag="e", max_bytes=LIMIT)


def test_a_store_that_ignores_conditions_does_not_pass_off_a_successor(
    store: OddStore, s3: S3Storage
) -> None:
    """The tag of the answer is compared on this side."""
    store.answers["k"] = Answer(headers={"ETag": '"new"'}, body=BODY)
    with pytest.raises(ObjectReplaced):
        s3.fetch("b", "k", etag="old", max_bytes=LIMIT)


def test_a_page_of_a_firewall_is_no_object(store: OddStore, s3: S3Storage) -> None:
    """HTML in place of the object says nothing of the object."""
    store.answers["k"] = Answer(headers={"Content-Type": "text/html"}, body=b"<html>who are you?")
    with pytest.raises(AnswerUnusable, match="web page"):
        s3.fetch("b", "k", etag="e", max_bytes=LIMIT)


def test_a_compressed_object_is_fetched_as_a_viewer_sees_it(store: OddStore, s3: S3Storage) -> None:
    """What was stored under Content-Encoding: gzip arrives decompressed, within the limit."""
    headers = {"ETag": '"e"', "Content-Encoding": "gzip"}
    store.answers["k"] = Answer(headers=headers, body=gzip.compress(BODY))
    assert s3.fetch("b", "k", etag="e", max_bytes=len(BODY)) == BODY
    with pytest.raises(ObjectTooLarge):
        s3.fetch("b", "k", etag="e", max_bytes=len(BODY) - 1)


def test_an_archived_object_has_facts_and_no_bytes(store: OddStore, s3: S3Storage) -> None:
    """HEAD answers for what lies in an archive, GET says why it cannot be read."""
    store.answers["k"] = lambda method, _: (
        Answer(headers={"ETag": '"e"', "x-amz-storage-class": "GLACIER"})
        if method == "HEAD"
        else refusal(403, "InvalidObjectState")
    )
    assert s3.head("b", "k").etag == "e"
    with pytest.raises(ObjectArchived):
        s3.fetch("b", "k", etag="e", max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "ExpiredToken", AccessDenied),
        (400, "InvalidRequest", AnswerUnusable),
        (404, "NoSuchBucket", AccessDenied),
        (404, "NoSuchKey", ObjectMissing),
        (403, "InvalidObjectState", ObjectArchived),
    ],
)
def test_a_refusal_of_head_is_asked_why(
    store: OddStore, s3: S3Storage, status: int, code: str, error: type[Exception]
) -> None:
    """HEAD has no body for a code, so one GET asks for it."""
    store.answers["k"] = refusal(status, code)
    with pytest.raises(error, match=code):
        s3.head("b", "k")
    assert (store.asked["HEAD", "k"], store.asked["GET", "k"]) == (1, 1)


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_a_gateway_without_head_is_asked_with_get(
    store: OddStore, s3: S3Storage, status: int
) -> None:
    """Where only HEAD is refused, GET gives the facts."""
    store.answers["k"] = lambda method, _: (
        refusal(status) if method == "HEAD" else Answer(headers={"ETag": '"e"'}, body=BODY)
    )
    facts = s3.head("b", "k")
    assert (facts.etag, facts.size) == ("e", len(BODY))


def test_a_redirect_names_the_region_and_the_settings(store: OddStore, s3: S3Storage) -> None:
    """What a person has to change stands in the message."""
    store.answers["k"] = refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1")
    with pytest.raises(AnswerUnusable, match=r"region eu-west-1: set UNLATENT_S3__REGION"):
        s3.fetch("b", "k", max_bytes=LIMIT)


@pytest.mark.parametrize("date", ["yesterday", "", "Wed, 99 Oct 2026 07:28:00 GMT"])
def test_a_date_that_is_none_is_no_answer_to_build_on(
    store: OddStore, s3: S3Storage, date: str
) -> None:
    """A header that cannot be read neither ends the process nor the object."""
    store.answers["k"] = Answer(headers={"Last-Modified": date, "ETag": '"e"'}, body=BODY)
    with pytest.raises(AnswerUnusable):
        s3.fetch("b", "k", etag="e", max_bytes=LIMIT)
