"""Entries of the ingest list become uploads, removals or typed refusals, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.event_outcomes import only_known_outcomes
from worker.ingest import events
from worker.ingest.events import Ignored, parse
from worker.ledger.interface import Removal, Upload

BUCKETS = ("uploads",)


def record(
    name: str = "ObjectCreated:Put", *, version: str = "2.1", **stored: Any
) -> dict[str, Any]:
    """Return a record as S3 writes it."""
    return {
        "eventVersion": version,
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2026-01-02T03:04:05.678Z",
        "eventName": name,
        "userIdentity": {"principalId": "p"},
        "requestParameters": {"sourceIPAddress": "192.0.2.1"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "c",
            "bucket": {"name": "uploads", "arn": "arn:aws:s3:::uploads"},
            "object": {"key": "a.jpg", "size": 7, "eTag": "e1", "sequencer": "0A"} | stored,
        },
    }


def s3(*records: Any) -> bytes:
    """Wrap records as S3 does."""
    return json.dumps({"Records": records}).encode()


def own(**values: Any) -> bytes:
    """Return an entry of our own shape."""
    return json.dumps({"v": 1, "bucket": "uploads", "key": "a.jpg"} | values).encode()


def one(raw: bytes) -> events.Event:
    """Parse an entry that must hold one event."""
    (event,) = parse(raw, buckets=BUCKETS)
    return event


def test_own_shape_is_read_whole() -> None:
    """Every field of our own shape arrives, with the time in UTC and the tag unquoted."""
    raw = own(
        id="00000000-0000-0000-0000-000000000000",
        key="dir/a b+c%20.jpg",
        etag='"e1"',
        size=7,
        content_type="image/jpeg",
        sha256="AB" * 32,
        source="web",
        uploader="u",
        priority=True,
        uploaded_at="2026-01-02T05:04:05+02:00",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    assert one(raw) == Upload(
        bucket="uploads",
        key="dir/a b+c%20.jpg",
        etag="e1",
        size=7,
        content_type="image/jpeg",
        sha256="ab" * 32,
        source="web",
        uploader="u",
        priority=True,
        uploaded_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )


def test_what_we_write_we_read() -> None:
    """`own_event` and `parse` are inverse."""
    upload = Upload(
        bucket="uploads",
        key="ä\n.jpg",
        version_id="v",
        sequencer="0A",
        priority=True,
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
    )
    assert one(events.own_event(upload)) == upload


@pytest.mark.parametrize("written", ["e1", '"e1"', 'W/"e1"', ' W/"e1" ', "W/e1"])
def test_a_tag_is_read_without_its_quotes_and_its_weakness(written: str) -> None:
    """Weak and strong forms of one tag are one identity."""
    for event in (one(own(etag=written)), one(s3(record(eTag=written)))):
        assert isinstance(event, Upload)
        assert event.etag == "e1"


@pytest.mark.parametrize("character", ["\r\n", "\x01", "\x7f", "\x85", "\u2028", "\u200b"])
def test_what_would_break_a_request_is_refused_at_the_door(character: str) -> None:
    """Neither tags nor version ids carry characters that no header and no address may hold."""
    for raw in (
        own(etag=f"e{character}X-Other: 1"),
        own(etag="e", version_id=f"v{character}1"),
        s3(record(eTag=f"e{character}1")),
        s3(record(versionId=f"v{character}1")),
    ):
        with pytest.raises(events.EventFieldInvalid):
            parse(raw, buckets=BUCKETS)


@pytest.mark.parametrize("etag", ["ü", 'a"b', "a b", "\N{FULLWIDTH LATIN SMALL LETTER E}"])
def test_a_tag_that_no_client_can_send_is_refused(etag: str) -> None:
    """Tags are visible ASCII without quotes inside."""
    with pytest.raises(events.EventFieldInvalid):
        parse(own(etag=etag), buckets=BUCKETS)


@pytest.mark.parametrize("prefix", ["", "s3:"])
@pytest.mark.parametrize("version", ["2.0", "2.1", "2.6"])
def test_s3_event_is_read(prefix: str, version: str) -> None:
    """Created events of every version 2, with and without MinIO's prefix, are uploads."""
    raw = s3(record(f"{prefix}ObjectCreated:CompleteMultipartUpload", version=version))
    assert one(raw) == Upload(
        bucket="uploads",
        key="a.jpg",
        etag="e1",
        sequencer="0A",
        size=7,
        uploaded_at=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
    )


def test_s3_keys_are_url_encoded() -> None:
    """Plus is a space, and percent signs are bytes of UTF-8."""
    event = one(s3(record(key="dir/a+b%2Bc+%C3%A4.jpg")))
    assert isinstance(event, Upload)
    assert event.key == "dir/a b+c ä.jpg"


def test_several_records_keep_their_order() -> None:
    """One entry may hold several records."""
    keys = [event.key for event in parse(s3(record(key="b.jpg"), record()), buckets=BUCKETS)]  # type: ignore[union-attr]  # both are uploads
    assert keys == ["b.jpg", "a.jpg"]


def test_minio_access_shape_is_read() -> None:
    """MinIO wraps records in an outer list under a capital name, and may leave facts out."""
    stored = record("s3:ObjectCreated:Put", contentType="image/png", userMetadata={"a": "b"})
    del stored["s3"]["object"]["eTag"], stored["s3"]["object"]["size"]
    raw = json.dumps([{"Event": [stored, record(key="b.jpg")], "EventTime": "2026"}]).encode()
    first, second = parse(raw, buckets=BUCKETS)
    assert isinstance(first, Upload)
    assert isinstance(second, Upload)
    assert (first.etag, first.size, first.content_type) == (None, None, "image/png")
    assert second.key == "b.jpg"


def test_versions_and_the_null_version() -> None:
    """A version id identifies the object; the word null means there is none."""
    event, null = one(s3(record(versionId="v1"))), one(s3(record(versionId="null")))
    assert isinstance(event, Upload)
    assert isinstance(null, Upload)
    assert (event.version_id, null.version_id) == ("v1", None)


@pytest.mark.parametrize(
    ("name", "version_id"),
    [
        ("ObjectRemoved:Delete", "v1"),
        ("s3:ObjectRemoved:Delete", "v1"),
        ("LifecycleExpiration:Delete", "v1"),
        # The marker's own version id names no object.
        ("ObjectRemoved:DeleteMarkerCreated", None),
    ],
)
def test_removals(name: str, version_id: str | None) -> None:
    """Removed objects, by version or as a whole, are removals in S3's order."""
    assert one(s3(record(name, versionId="v1"))) == Removal(
        bucket="uploads", key="a.jpg", version_id=version_id, sequencer="0A"
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}).encode(), "test_event"),
        (s3(record("ObjectRestore:Post")), "event_kind"),
        (s3(record(key="a.txt")), "extension"),
        (s3(record(key="folder/")), "folder"),
        (own(key="a.dat", content_type="text/html; charset=utf-8"), "content_type"),
        (own(key="a.svg", content_type="image/svg+xml"), "content_type"),
    ],
)
def test_what_asks_for_nothing_is_ignored_with_a_reason(raw: bytes, reason: str) -> None:
    """Valid entries that are no uploads of images are counted, not rejected."""
    assert one(raw) == Ignored(reason=reason)


@pytest.mark.parametrize(
    "values",
    [
        {"key": "no-extension"},
        {"key": "a.JPEG"},
        {"key": "a.bin", "content_type": "image/jpeg"},
        {"key": "a.heic", "content_type": "application/octet-stream"},
        {"key": "dir.d/name"},
    ],
)
def test_what_may_be_an_image_is_accepted(values: dict[str, str]) -> None:
    """The content type decides when it says something, else the extension, else the bytes."""
    assert isinstance(one(own(**values)), Upload)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", events.EventNotJson),
        (b"\xff\xfe", events.EventNotJson),
        (b"{", events.EventNotJson),
        (b"[NaN]", events.EventNotJson),
        (b"1" * 5000, events.EventNotJson),
        (b"[" * 100_000, events.EventTooDeep),
        (b"[" * 50 + b"]" * 50, events.EventTooDeep),
        (b" " * (events.MAX_ENTRY_BYTES + 1), events.EventTooLarge),
        (json.dumps([1] * 1001).encode(), events.EventTooLarge),
        (b"null", events.EventShapeUnknown),
        (b"{}", events.EventShapeUnknown),
        (b"[]", events.EventShapeUnknown),
        (b"[1]", events.EventShapeUnknown),
        (b'{"Records": []}', events.EventShapeUnknown),
        (b'{"Records": {}}', events.EventShapeUnknown),
        (s3(1), events.EventFieldInvalid),
        (s3(record(version="3.0")), events.EventVersionUnknown),
        (s3(record(version="20.1")), events.EventVersionUnknown),
        (own(v=2), events.EventVersionUnknown),
        (own(v=True), events.EventVersionUnknown),
        (own(v="1"), events.EventVersionUnknown),
        (own(nonsense=1), events.EventFieldInvalid),
        (own(key=""), events.EventFieldInvalid),
        (own(key=7), events.EventFieldInvalid),
        (own(key="x" * 1025), events.EventFieldInvalid),
        (own(key="a\0.jpg"), events.EventFieldInvalid),
        (own(key="\ud800.jpg"), events.EventFieldInvalid),
        (own(etag="e" * 201), events.EventFieldInvalid),
        (own(size=-1), events.EventFieldInvalid),
        (own(size=2**63), events.EventFieldInvalid),
        (own(size=True), events.EventFieldInvalid),
        (own(sha256="ab"), events.EventFieldInvalid),
        (own(sequencer="xyz"), events.EventFieldInvalid),
        (own(priority="yes"), events.EventFieldInvalid),
        (own(uploaded_at="yesterday"), events.EventFieldInvalid),
        (own(uploaded_at="0001-01-01T00:00:00+14:00"), events.EventFieldInvalid),
        (own(bucket="secrets"), events.BucketNotAllowed),
        (s3(record(key="%00.jpg")), events.EventFieldInvalid),
        (s3(record(), record(key="")), events.EventFieldInvalid),
    ],
)
def test_refusals_are_typed(raw: bytes, error: type[events.EventError]) -> None:
    """Each kind of bad entry has its own error, hence its own reason."""
    with pytest.raises(error) as caught:
        parse(raw, buckets=BUCKETS)
    assert type(caught.value) is error


def test_reasons_are_distinct() -> None:
    """Reasons are metric labels: no two errors share one."""
    kinds = events.EventError.__subclasses__()
    assert len({kind.reason for kind in kinds} | {events.EventError.reason}) == len(kinds) + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["v", "bucket", "key", "Records", "Event", "s3", "object", "size", "name"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    """Arbitrary bytes never raise anything but our own error."""
    only_known_outcomes(raw)


@given(JSON)
def test_any_json(value: object) -> None:
    """Arbitrary JSON never raises anything but our own error."""
    only_known_outcomes(json.dumps(value).encode())


@given(
    st.sampled_from(["own", "record", "object"]),
    st.sampled_from(
        [*sorted(events.OWN_EVENT_FIELDS), "eTag", "versionId", "eventTime", "eventName", "s3"]
    ),
    JSON,
)
def test_any_value_in_any_field(where: str, name: str, value: object) -> None:
    """A valid entry with one field replaced by anything is read or refused."""
    if where == "own":
        only_known_outcomes(own(**{name: value}))
    elif where == "object":
        changed = record()
        changed["s3"]["object"][name] = value
        only_known_outcomes(s3(changed))
    else:
        only_known_outcomes(s3(record() | {name: value}))
