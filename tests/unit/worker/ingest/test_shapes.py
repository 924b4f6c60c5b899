"""Every shape of event becomes what its document says; mutated, it is read or refused."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import event_samples as samples
from tests.support.event_outcomes import only_known_outcomes
from tests.support.event_samples import SAMPLES, Sample
from worker.ingest import events
from worker.ingest.events import Ignored, parse
from worker.ledger.interface import Removal, Upload, removal_applies

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKETS = ("uploads",)


def read(value: Any) -> list[events.Event]:
    """Parse a value as an entry."""
    return parse(json.dumps(value).encode(), buckets=BUCKETS)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_documented_event_becomes_what_it_says(sample: Sample) -> None:
    """Each sample names the document of its shape."""
    assert sample.source
    assert read(sample.entry) == sample.events


def test_a_confirmation_says_what_to_do() -> None:
    """The operator learns it from the log; nothing is fetched."""
    for name in ("SNS subscription", "Azure validation"):
        (ignored,) = read(SAMPLES[name].entry)
        assert isinstance(ignored, Ignored)
        assert ignored.hint


def test_envelopes_may_be_nested_but_not_for_ever() -> None:
    """A queue around a topic around an event bus is read; five envelopes are not."""
    message = json.dumps(SAMPLES["EventBridge"].entry)
    for _ in range(events.MAX_ENVELOPES):
        message = json.dumps(samples.sns(message))
    assert parse(message.encode(), buckets=BUCKETS) == SAMPLES["EventBridge"].events
    with pytest.raises(events.EventTooDeep):
        read(samples.sns(message))


def test_records_are_counted_over_all_lists() -> None:
    """What is nested does not slip under the limit."""
    record = {"eventVersion": "2.1", "eventName": "ObjectTagging:Put"}
    half = [record] * (events.MAX_RECORDS // 2)
    assert len(read([{"Event": half}, {"Event": half}])) == events.MAX_RECORDS
    with pytest.raises(events.EventTooLarge):
        read([{"Event": half}, {"Event": half}, {"Event": [record]}])


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (samples.cloud_event("c", data={}, specversion="2.0"), events.EventVersionUnknown),
        (samples.cloud_event("c"), events.EventFieldInvalid),
        (samples.cloud_event("c", data_base64="%"), events.EventFieldInvalid),
        (samples.cloud_event("c", data="{"), events.EventNotJson),
        (samples.cloud_event("c", data={"hello": "world"}), events.EventShapeUnknown),
        (samples.sns("plain text"), events.EventNotJson),
        (samples.sns("\ud800"), events.EventNotJson),
        (samples.eventbridge("Object Created", object={"key": ""}), events.EventFieldInvalid),
        (samples.eventbridge("Object Created", bucket={"name": "b"}), events.BucketNotAllowed),
        (samples.gcs("OBJECT_FINALIZE", objectGeneration="x"), events.EventFieldInvalid),
        (
            samples.azure("Microsoft.Storage.BlobCreated") | {"subject": "/blobs/a.jpg"},
            events.EventFieldInvalid,
        ),
        (
            samples.azure("Microsoft.Storage.BlobRenamed", sourceUrl="http://[/a/b"),
            events.EventFieldInvalid,
        ),
        (samples.r2("PutObject", key=7), events.EventFieldInvalid),
        (samples.seaweedfs("/buckets//a.jpg", new_entry={}), None),
        (samples.seaweedfs("/buckets//a.jpg", old_entry={"name": "a"}), events.EventFieldInvalid),
    ],
)
def test_bad_events_of_every_shape_are_refused(
    value: Any, error: type[events.EventError] | None
) -> None:
    """With an error that says which field, and nothing else."""
    if error is None:
        assert read(value) == [Ignored(reason="event_kind")]
        return
    with pytest.raises(error):
        read(value)


def test_generations_order_what_happens_to_a_key() -> None:
    """A removal takes away its own generation, and never the one that came after."""
    (gone,) = read(samples.gcs("OBJECT_DELETE", objectGeneration="15"))
    assert isinstance(gone, Removal)
    for generation, applies in (("9", True), ("15", True), ("16", False), ("1000", False)):
        (made,) = read(samples.gcs("OBJECT_FINALIZE", objectGeneration=generation))
        assert isinstance(made, Upload)
        assert removal_applies(gone, version_id=None, sequencer=made.sequencer) is applies


def test_times_order_the_events_of_r2() -> None:
    """R2 gives no sequencer, and its queue hands out messages in any order."""
    (gone,) = read(samples.r2("DeleteObject") | {"eventTime": "2026-01-02T03:04:05.500Z"})
    assert isinstance(gone, Removal)
    for written, applies in (("05.499", True), ("05.501", False), ("09", False)):
        time = {"eventTime": f"2026-01-02T03:04:{written}Z"}
        (made,) = read(samples.r2("PutObject") | time)
        assert isinstance(made, Upload)
        assert removal_applies(gone, version_id=None, sequencer=made.sequencer) is applies


def test_sequencers_of_ceph_are_comparable() -> None:
    """Its little-endian times compare as S3's numbers do; numbers of S3 stay as they are."""
    ordered = []
    for second, nanosecond in ((5, 1), (5, 256), (6, 0), (61, 7)):
        seconds = 1767323040 + second
        dumped = seconds.to_bytes(4, "little") + nanosecond.to_bytes(4, "little")
        (event,) = read({"Records": [samples.s3_record(sequencer=dumped.hex().upper())]})
        assert isinstance(event, Upload)
        ordered.append(event.sequencer)
    assert ordered == sorted(ordered, key=str)
    (event,) = read({"Records": [samples.s3_record(sequencer="00617F08299329D1")]})
    assert isinstance(event, Upload)
    assert event.sequencer == "00617F08299329D1"


@pytest.mark.parametrize("time", [1767323045000, "Fri, 02 Jan 2026 03:04:05 GMT", "yesterday"])
def test_a_time_that_cannot_be_read_loses_no_upload(time: object) -> None:
    """It is only told, never relied on."""
    (event,) = read({"Records": [samples.s3_record() | {"eventTime": time}]})
    assert isinstance(event, Upload)
    assert event.uploaded_at is None


def test_keys_that_may_be_plain_are_carried_as_written() -> None:
    """Only where decoding changed them, and only of records of S3's shape."""
    keys = {
        "a+b.jpg": ("a b.jpg", "a+b.jpg"),
        "100%25.jpg": ("100%.jpg", "100%25.jpg"),
        "plain.jpg": ("plain.jpg", None),
        # No encoder writes these.
        "100%+sure.jpg": ("100%+sure.jpg", None),
        "100%cat.jpg": ("100%cat.jpg", None),
        "x" * 1020 + "%41+.j": ("x" * 1020 + "A .j", None),
    }
    found = read({"Records": [samples.s3_record(key=key) for key in keys]})
    assert [(event.key, event.raw_key) for event in found if isinstance(event, Upload)] == list(
        keys.values()
    )
    (event,) = read({"Records": [samples.s3_record(event_source="minio:s3")]})
    assert isinstance(event, Upload)
    assert (event.key, event.raw_key) == ("a b+c.jpg", None)
    (event,) = read(samples.eventbridge("Object Created", object={"key": "a+b.jpg"}))
    assert isinstance(event, Upload)
    assert (event.key, event.raw_key) == ("a+b.jpg", None)


# Mutations ----------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["null", "%", "\0", "\ud800", "x" * 4000, "2.1", "1.0", "/", "{}", "[]"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path of everything below a value."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield (*path, name)
            yield from places(child, (*path, name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield (*path, index)
            yield from places(child, (*path, index))


@settings(deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_mutated_event_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """One to three values anywhere in it are replaced, removed or moved elsewhere."""
    value = copy.deepcopy(SAMPLES[name].entry)
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            break
        *parents, last = data.draw(st.sampled_from(found))
        holder = value
        for step in parents:
            holder = holder[step]
        if data.draw(st.booleans()):
            holder[last] = data.draw(VALUES)
        else:
            del holder[last]
    only_known_outcomes(json.dumps(value).encode())


@settings(deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_an_event_with_broken_bytes_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """Some bytes of it are cut out, doubled or replaced."""
    raw = json.dumps(SAMPLES[name].entry).encode()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, len(raw)))
    only_known_outcomes(raw[:start] + data.draw(st.binary(max_size=20)) + raw[end:])
    only_known_outcomes(raw[:end] + raw[start:])
