"""Traces: what is measured, what is sent along, and that no collector can do harm."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import get_current_span
from pydantic import ValidationError

from detection.errors import SettingsError
from tests.support.trace_collector import Collector, attributes
from tests.support.waiting import eventually
from worker.settings import Tracing
from worker.telemetry.tracer import NO_TRACER
from worker.telemetry.tracing import build_tracer, check_span, message_headers
from worker.telemetry.tracing_otlp import OtlpTracer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.telemetry.tracer import Tracer

#: The example of W3C's Trace Context, and the same trace when nobody keeps it.
PRODUCER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNKEPT = PRODUCER[:-2] + "00"
#: Nobody listens here: port 1 belongs to a service that is long extinct.
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Run a collector."""
    with Collector() as collector:
        yield collector


def tracer(collector: Collector, *, sample_share: float = 1.0) -> Tracer:
    """Return a tracer that delivers to the collector."""
    settings = Tracing(endpoint=collector.url, sample_share=sample_share)
    return build_tracer(settings, service="unlatent-test")


def test_without_a_collector_nothing_that_traces_is_imported() -> None:
    """Without an endpoint only the API of OpenTelemetry is needed, not what exports."""
    script = (
        "import sys\n"
        "import worker.ingest.bridge, worker.scoring.pipeline\n"
        "import worker.queue.publisher, worker.queue.tasks\n"
        "from worker.settings import Settings\n"
        "from worker.telemetry.tracing import NO_TRACER, build_tracer\n"
        "assert build_tracer(Settings().tracing, service='s') is NO_TRACER\n"
        "print(*{'opentelemetry.sdk.trace', 'opentelemetry.exporter'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_a_collector_without_the_library_is_a_setting_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the setting and the extra to install."""
    monkeypatch.delitem(sys.modules, "worker.telemetry.tracing_otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"UNLATENT_TRACING__ENDPOINT.*unlatent\[tracing\]"):
        build_tracer(Tracing(endpoint=NOWHERE), service="s")


def test_without_a_collector_a_foreign_trace_is_left_alone() -> None:
    """The trace of a program around ours is neither passed on nor added to."""
    with TracerProvider().get_tracer("theirs").start_as_current_span("theirs") as theirs:
        NO_TRACER.note(attempt=2)
        with NO_TRACER.span("check", parent=PRODUCER):
            NO_TRACER.note(attempt=3)
            assert get_current_span() is theirs
            assert NO_TRACER.traceparent() is None
        assert NO_TRACER.traceparent() is None
        for parent in (None, PRODUCER):
            assert NO_TRACER.record("forward", begun_s=0, ended_s=1, parent=parent) is None
        assert message_headers(NO_TRACER).get("traceparent") is None
    assert isinstance(theirs, ReadableSpan)
    assert not theirs.attributes


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://"])
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    """A collector is named by an http or https address."""
    with pytest.raises(ValidationError):
        Tracing(endpoint=endpoint)


def test_stages_arrive_as_one_trace(collector: Collector) -> None:
    """Stages within a stage are its children, at the wall clock's times, also those added later."""
    tracing = tracer(collector)
    before_ns = time.time_ns()
    with tracing.span("check", parent=PRODUCER, image_id="i"):
        tracing.note(attempt=2)
        with tracing.span("fetch"):
            inner = tracing.traceparent()
        now = time.monotonic()
        tracing.record("forward", begun_s=now - 3600, ended_s=now)
    tracing.close()
    assert collector.paths == {"/v1/traces"}
    spans = collector.spans()
    assert set(spans) == {"check", "fetch", "forward"}
    assert {span.trace_id.hex() for span in spans.values()} == {PRODUCER[3:35]}
    check = spans["check"]
    assert check.parent_span_id.hex() == PRODUCER[36:52]
    assert spans["fetch"].parent_span_id == spans["forward"].parent_span_id == check.span_id
    assert inner == f"{PRODUCER[:36]}{spans['fetch'].span_id.hex()}-01"
    assert attributes(check) == {"unlatent.image_id": "i", "unlatent.attempt": 2}
    assert {service for service, _ in collector.delivered()} == {"unlatent-test"}
    forward = spans["forward"]
    took_s = (forward.end_time_unix_nano - forward.start_time_unix_nano) / 1e9
    assert took_s == pytest.approx(3600, abs=0.01)
    assert before_ns - 10**9 < forward.end_time_unix_nano < time.time_ns() + 10**9


def test_an_exception_is_told_by_its_class_alone(collector: Collector) -> None:
    """Messages of exceptions name objects and addresses, which belong in no trace."""
    tracing = tracer(collector)
    failure = ZeroDivisionError("s3://uploads/hunter2.jpg")
    with pytest.raises(ZeroDivisionError), tracing.span("fetch"):
        raise failure
    tracing.close()
    span = collector.spans()["fetch"]
    assert (span.status.code, span.status.message) == (2, "ZeroDivisionError")
    assert not span.events
    assert b"hunter2" not in b"".join(collector.bodies)


def test_a_share_of_the_traces_is_kept_and_a_producer_decides_for_its_own(
    collector: Collector,
) -> None:
    """With a share of 0 only what a producer keeps is kept; the others' context still travels."""
    tracing = tracer(collector, sample_share=0)
    entry = tracing.record("ingest", begun_s=0, ended_s=1)
    assert entry is not None
    assert not int(entry[-2:], 16) & 1  # W3C's flag "sampled"
    for name, parent in [("of-ours", entry), ("kept", PRODUCER), ("unkept", UNKEPT)]:
        with tracing.span(name, parent=parent):
            pass
    tracing.close()
    assert set(collector.spans()) == {"kept"}


def test_a_message_carries_the_stage_that_sent_it(collector: Collector) -> None:
    """The check belongs to the publication, and so does the wait between them."""
    tracing = tracer(collector)
    with tracing.span("publish"):
        headers = message_headers(tracing)
    headers["sent_at"] = time.time() - 60
    with check_span(tracing, headers, image_id="i", retries=0):
        pass
    with check_span(tracing, headers, image_id="again", retries=1):
        pass
    tracing.close()
    publish, *waits = [span for _, span in collector.delivered() if span.name != "check"][::-1]
    assert (publish.name, publish.kind) == ("publish", 4)
    (queue,) = waits
    took_s = (queue.end_time_unix_nano - queue.start_time_unix_nano) / 1e9
    assert took_s == pytest.approx(60, abs=10)
    check = collector.spans()["check"]
    assert check.kind == 5
    assert queue.parent_span_id == check.parent_span_id == publish.span_id
    assert message_headers(NO_TRACER) == {}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": 7, "sent_at": 0},
        {"traceparent": "00-zz-01", "sent_at": "yesterday"},
        {"traceparent": "x" * 1000, "sent_at": float("nan")},
        {"traceparent": "00-" + 32 * "0" + "-" + 16 * "0" + "-01", "sent_at": -1e308},
        {"traceparent": "no", "sent_at": 10**400},
    ],
)
def test_a_message_without_a_sound_context_begins_a_trace(
    collector: Collector, headers: dict[str, object]
) -> None:
    """What an older bridge or a stranger sent is checked like any other, in a trace of its own."""
    tracing = tracer(collector)
    with check_span(tracing, headers, image_id="i", retries=0):
        pass
    tracing.close()
    spans = [span for _, span in collector.delivered()]
    assert [(span.name, span.parent_span_id) for span in spans] == [("check", b"")]


def test_a_collector_that_hangs_holds_nobody_up(collector: Collector) -> None:
    """While no request is answered, more stages end than the queue holds, and memory is bounded."""
    collector.open.clear()
    tracing = tracer(collector)
    for _ in range(3000):
        with tracing.span("check"):
            pass
    assert collector.asked.wait(60)
    for _ in range(3000):
        with tracing.span("check"):
            pass
    collector.open.set()
    tracing.close()
    eventually(lambda: bool(collector.bodies), timeout_s=60, what="the batch that hung")
    assert len(collector.delivered()) < 6000


def test_a_collector_that_refuses_is_told_once(collector: Collector) -> None:
    """However many batches are lost, the log says so once, and once that they arrive again."""
    tracing = tracer(collector)
    assert isinstance(tracing, OtlpTracer)
    with structlog.testing.capture_logs() as logs:
        for collector.status in (200, 400, 400, 400, 200, 200):
            with tracing.span("check"):
                pass
            tracing._provider.force_flush()
    assert [entry["event"] for entry in logs] == ["traces_lost", "trace_export_recovered"]
    assert logs[0]["setting"] == "UNLATENT_TRACING__ENDPOINT"
    assert len(collector.delivered()) == 3
    tracing.close()
