"""One contract, two storages: what the service relies on holds for both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from worker.storage.interface import (
    AddressRefused,
    ObjectMissing,
    ObjectReplaced,
    ObjectTooLarge,
    purge,
    remove,
)
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


@pytest.fixture(params=["memory", "s3"])
def versioned(request: pytest.FixtureRequest, bucket: str) -> Storage:
    """Return an empty storage of each kind whose bucket keeps every version."""
    if request.param == "memory":
        return MemoryStorage([bucket], versioned=[bucket])
    settings: Settings = request.getfixturevalue("settings")
    request.getfixturevalue("s3_client").put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
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


def test_an_object_that_was_replaced_is_not_removed(storage: Storage, bucket: str) -> None:
    """A removal that names an etag spares the successor, and repeats without an error."""
    first = storage.put(bucket, "k", b"first", content_type="image/png")
    second = storage.put(bucket, "k", b"second", content_type="image/png")
    with pytest.raises(ObjectReplaced):
        storage.delete(bucket, "k", etag=first.etag)
    assert storage.head(bucket, "k").etag == second.etag
    for _ in range(2):
        storage.delete(bucket, "k", etag=second.etag)
    with pytest.raises(ObjectMissing):
        storage.head(bucket, "k")


def test_a_bucket_without_versions_lists_what_is_current(storage: Storage, bucket: str) -> None:
    """Each object once, and what was listed can be removed as it was listed."""
    for body in (b"first", b"second"):
        storage.put(bucket, "k", body, content_type="image/png")
    storage.put(bucket, "k2", b"other", content_type="image/png")
    (found,) = storage.versions_of(bucket, "k")
    assert (found.etag, found.latest) == (storage.head(bucket, "k").etag, True)
    assert [facts.key for facts in storage.versions(bucket)] == ["k", "k2"]
    remove(storage, [found])
    assert [facts.key for facts in storage.versions(bucket)] == ["k2"]
    assert storage.versions_of(bucket, "k") == []


def test_what_was_overwritten_after_it_was_listed_is_not_removed(
    storage: Storage, bucket: str
) -> None:
    """The unnamed version of a bucket without versions may be another one by now."""
    storage.put(bucket, "k", b"first", content_type="image/png")
    listed = storage.versions_of(bucket, "k")
    storage.put(bucket, "k", b"second", content_type="image/png")
    with pytest.raises(ObjectReplaced):
        remove(storage, listed)
    assert storage.fetch(bucket, "k", max_bytes=LIMIT) == b"second"


def test_versions_are_listed_and_removed_one_by_one(versioned: Storage, bucket: str) -> None:
    """Newest first, hidden ones too; removing one leaves the others readable."""
    put = [
        versioned.put(bucket, "k", body, content_type="image/png") for body in (b"1", b"1", b"2")
    ]
    versioned.put(bucket, "k.jpg", b"other", content_type="image/png")
    ids = [facts.version_id for facts in put]
    assert len(set(ids)) == 3

    def listed() -> list[tuple[str | None, bool]]:
        return [(facts.version_id, facts.latest) for facts in versioned.versions_of(bucket, "k")]

    assert listed() == [(ids[2], True), (ids[1], False), (ids[0], False)]
    assert [facts.key for facts in versioned.versions(bucket)] == ["k"] * 3 + ["k.jpg"]
    versioned.delete(bucket, "k", version_id=ids[1])
    versioned.delete(bucket, "k", version_id=ids[1])
    assert versioned.fetch(bucket, "k", version_id=ids[0], max_bytes=LIMIT) == b"1"
    with pytest.raises(ObjectMissing):
        versioned.head(bucket, "k", version_id=ids[1])
    versioned.delete(bucket, "k")
    assert listed() == [(ids[2], False), (ids[0], False)]
    with pytest.raises(ObjectMissing):
        versioned.head(bucket, "k")
    purge(versioned, bucket, "k")
    assert listed() == []
    assert [facts.key for facts in versioned.versions(bucket)] == ["k.jpg"]


def test_more_versions_than_a_page_are_listed_whole(versioned: Storage, bucket: str) -> None:
    """No version is lost or told twice where one page ends and the next begins."""
    ids = {
        versioned.put(bucket, "k", b"%d" % n, content_type="image/png").version_id
        for n in range(45)
    }
    found = [facts.version_id for facts in versioned.versions_of(bucket, "k")]
    assert len(found) == 45
    assert set(found) == ids


def test_what_was_stored_before_its_bucket_had_versions_is_removed(
    settings: Settings, s3_client: Any, bucket: str
) -> None:
    """It has the version id "null": it goes for good, and no later version with it."""
    storage = S3Storage(settings.s3)
    storage.put(bucket, "k", b"before", content_type="image/png")
    storage.put(bucket, "alone", b"before", content_type="image/png")
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    storage.put(bucket, "k", b"after", content_type="image/png")
    for key in ("k", "alone"):
        before = storage.versions_of(bucket, key)[-1]
        assert before.version_id == "null"
        remove(storage, [before])
    assert [facts.size for facts in storage.versions(bucket)] == [len(b"after")]
    assert "DeleteMarkers" not in s3_client.list_object_versions(Bucket=bucket)
