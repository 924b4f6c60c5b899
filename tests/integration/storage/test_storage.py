"""One contract, two storages: what the service relies on holds for both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from worker.storage.interface import AddressRefused, ObjectMissing, ObjectReplaced, ObjectTooLarge
from worker.storage.memory import MemoryStorage
from worker.storage.s3 import S3Storage

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.storage.interface import Storage

LIMIT = 10 * 2**20


@pytest.fixture(params=["memory", "s3"])
def storage(request: pytest.FixtureRequest, bucket: str) -> Storage:
    """Return an empty storage of each kind."""
    if request.param == "memory":
        return MemoryStorage([bucket])
    settings: Settings = request.getfixturevalue("settings")
    return S3Storage(settings.s3)


@pytest.mark.parametrize("key", ["plain.png", "a b/ü+%2F~.jpg", "x/y/z?v=1#f", "x/./y"])
def test_what_was_put_is_fetched(storage: Storage, bucket: str, key: str) -> None:
    """Bytes and facts come back as they went in, whatever the key."""
    body = os.urandom(700_000)
    put = storage.put(bucket, key, body, content_type="image/png")
    assert storage.fetch(bucket, key, etag=put.etag, max_bytes=LIMIT) == body
    facts = storage.head(bucket, key)
    assert (facts.key, facts.size, facts.etag) == (key, len(body), put.etag)
    assert facts.content_type == "image/png"
    assert '"' not in facts.etag
    assert [listed.key for listed in storage.list(bucket)] == [key]


def test_an_empty_object_is_fetched(storage: Storage, bucket: str) -> None:
    """Zero bytes are an answer; that they are no image is for intake to say."""
    put = storage.put(bucket, "empty", b"", content_type="image/png")
    assert storage.fetch(bucket, "empty", etag=put.etag, max_bytes=LIMIT) == b""


def test_what_is_not_there_is_missing(storage: Storage, bucket: str) -> None:
    """A key without an object is a permanent fault, for every call that reads."""
    with pytest.raises(ObjectMissing):
        storage.fetch(bucket, "absent", etag="0" * 32, max_bytes=LIMIT)
    with pytest.raises(ObjectMissing):
        storage.head(bucket, "absent")
    storage.delete(bucket, "absent")


def test_a_replaced_object_is_told(storage: Storage, bucket: str) -> None:
    """An object that changed since its event is not taken for the one announced."""
    first = storage.put(bucket, "k", b"first", content_type="image/png")
    storage.put(bucket, "k", b"second", content_type="image/png")
    with pytest.raises(ObjectReplaced):
        storage.fetch(bucket, "k", etag=first.etag, max_bytes=LIMIT)


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False)])
def test_the_limit_on_bytes_holds(storage: Storage, bucket: str, size: int, fits: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The limit is the last size that is fetched."""
    storage.put(bucket, "k", bytes(size), content_type="image/png")
    if fits:
        assert len(storage.fetch(bucket, "k", max_bytes=1000)) == size
    else:
        with pytest.raises(ObjectTooLarge):
            storage.fetch(bucket, "k", max_bytes=1000)


@pytest.mark.parametrize(
    ("elsewhere", "key"), [(True, "k"), (False, "../other/k"), (False, "a/..")]
)
def test_addresses_outside_the_buckets_are_refused(
    storage: Storage,
    bucket: str,
    elsewhere: bool,  # noqa: FBT001 - a parameter of the test
    key: str,
) -> None:
    """An event cannot make the service read where it was not told to."""
    name = "other" if elsewhere else bucket
    for call in (
        lambda: storage.fetch(name, key, max_bytes=LIMIT),
        lambda: storage.head(name, key),
        lambda: storage.put(name, key, b"", content_type="image/png"),
        lambda: storage.delete(name, key),
    ):
        with pytest.raises(AddressRefused):
            call()


def test_listing_is_in_key_order_and_by_prefix(storage: Storage, bucket: str) -> None:
    """Listing gives the current objects under a prefix, in the order of their keys."""
    for key in ("b/2", "a/1", "b/1", "c"):
        storage.put(bucket, key, b"x", content_type="image/png")
    storage.delete(bucket, "b/2")
    assert [facts.key for facts in storage.list(bucket)] == ["a/1", "b/1", "c"]
    assert [facts.key for facts in storage.list(bucket, prefix="b/")] == ["b/1"]
