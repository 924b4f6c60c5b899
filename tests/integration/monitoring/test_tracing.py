"""Traces of real processes: from an entry of the ingest list to the verdict."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.processes.worker_process import WorkerProcess
from tests.support.trace_collector import Collector, attributes
from tests.support.upload_site import Site, png
from tests.support.waiting import eventually
from worker.client import Client
from worker.ingest.bridge import Bridge
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ledger.interface import State
from worker.ledger.postgres import PostgresLedger
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.broker_state import RedisBrokerState
from worker.queue.publisher import CeleryPublisher
from worker.settings import Tracing
from worker.storage.memory import MemoryStorage
from worker.telemetry.tracing import build_tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from opentelemetry.proto.trace.v1.trace_pb2 import Span
    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings

#: The example of W3C's Trace Context.
PRODUCER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: Which span each one belongs to, in the order in which they begin.
TREE = {
    "ingest": None,
    "register": "ingest",
    "publish": "ingest",
    "queue": "publish",
    "check": "publish",
    "fetch": "check",
    "decode": "check",
    "batch": "check",
    "forward": "check",
    "persist": "check",
}


def test_a_message_names_its_sender_and_stays_small(
    settings: Settings, engine: Engine, redis_client: Redis
) -> None:
    """A bridge that traces sends what others read as before, with two short headers more."""
    ledger, app, metrics = PostgresLedger(engine), build_app(settings), BridgeMetrics()
    sizes: dict[bool, int] = {}
    with Collector() as collector:
        for traced in (False, True):
            endpoint = collector.url if traced else ""
            tracer = build_tracer(Tracing(endpoint=endpoint), service="unlatent-bridge")
            bridge = Bridge(
                redis=redis_client,
                ledger=ledger,
                publisher=CeleryPublisher(app, ledger, tracer),
                storage=MemoryStorage(["uploads"]),
                buckets=["uploads"],
                settings=settings.redis,
                storage_settings=settings.s3,
                metrics=metrics,
                name="b",
                tracer=tracer,
            )
            event = {"v": 1, "bucket": "uploads", "key": f"{traced}.png", "etag": "e"}
            redis_client.rpush(f"{settings.redis.key_prefix}ingest", json.dumps(event))
            assert bridge.step() == 1
            (image_id,) = RedisBrokerState(settings.redis).images()
            raw = redis_client.lpop(settings.redis.key_prefix + queues.SCORE)
            assert isinstance(raw, bytes)
            sizes[traced] = len(raw)
            headers = json.loads(raw)["headers"]
            assert ("traceparent" in headers) is ("sent_at" in headers) is traced
            tracer.close()
        app.close()
        spans = collector.spans()
    assert sizes[True] - sizes[False] < 200
    assert set(spans) == {"ingest", "register", "publish"}
    publish = spans["publish"]
    assert headers["traceparent"][3:52] == f"{publish.trace_id.hex()}-{publish.span_id.hex()}"
    assert attributes(publish) == {"unlatent.image_id": str(image_id)}


class Platform:
    """A platform whose uploads pass a bridge and a worker that name a collector."""

    def __init__(self, settings: Settings, engine: Engine, endpoint: str) -> None:
        tracing = settings.tracing.model_copy(update={"endpoint": endpoint})
        self.settings = settings.model_copy(update={"tracing": tracing})
        self._site = Site(settings, engine)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run both processes; they end well when they are told to."""
        with (
            WorkerProcess(self.settings, module="worker", arguments=["bridge"]) as bridge,
            WorkerProcess(self.settings) as worker,
        ):
            worker.wait_until_ready()
            yield
            assert (bridge.stop(), worker.stop()) == (0, 0)

    def verdict(self, key: str, value: int, traceparent: str | None = None) -> UUID:
        """Upload an image through the client and wait for its verdict."""
        settings = self.settings
        facts = self._site.storage.put(self._site.bucket, key, png(value), content_type="image/png")
        with Client(
            settings.redis.url.get_secret_value(),
            settings.postgres.url.get_secret_value(),
            settings.redis.key_prefix,
        ) as client:
            image_id = client.submit(
                bucket=facts.bucket, key=key, etag=facts.etag, traceparent=traceparent
            )
        eventually(
            lambda: self._site.row(image_id).state == State.SCORED,
            timeout_s=120,
            what=f"the verdict of {key}",
        )
        return image_id


@pytest.mark.full
@pytest.mark.timeout(600)
def test_one_upload_is_one_trace(settings: Settings, engine: Engine) -> None:
    """Bridge and worker measure its stages in order, each below its own; a producer's goes on."""
    with Collector() as collector:
        platform = Platform(settings, engine, collector.url)
        with platform.at_work():
            image_id = platform.verdict("holiday-snapshot.png", 51)
            platform.verdict("begun-elsewhere.png", 52, PRODUCER)
        traces: dict[str, dict[str, Span]] = {}
        for service, span in collector.delivered():
            assert service == f"unlatent-{'bridge' if span.name in list(TREE)[:3] else 'worker'}"
            named = traces.setdefault(span.trace_id.hex(), {})
            assert span.name not in named
            named[span.name] = span
    continued = traces.pop(PRODUCER[3:35])
    (ours,) = traces.values()
    for spans in (ours, continued):
        begun = [spans[name].start_time_unix_nano for name in TREE]
        assert set(spans) == set(TREE)
        assert begun == sorted(begun)
        for name, above in TREE.items():
            if above is not None:
                assert spans[name].parent_span_id == spans[above].span_id, name
        assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in spans.values())
    assert ours["ingest"].parent_span_id == b""
    assert continued["ingest"].parent_span_id.hex() == PRODUCER[36:52]
    told = {name: attributes(span) for name, span in ours.items()}
    assert told["ingest"] == told["publish"] == {"unlatent.image_id": str(image_id)}
    assert told["check"] == {
        "unlatent.image_id": str(image_id),
        "unlatent.attempt": 1,
        "unlatent.model_version": "memory-1",
    }
    delivered = b"".join(collector.bodies)
    secret = settings.s3.secret_access_key
    assert secret is not None
    for private in ("holiday-snapshot", settings.s3.buckets[0], secret.get_secret_value()):
        assert private.encode() not in delivered


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_collector_that_hangs_or_is_gone_costs_no_verdict(
    settings: Settings, engine: Engine
) -> None:
    """Images are checked and processes end as ever; the log says once that traces are lost."""
    with Collector() as collector:
        collector.open.clear()
        platform = Platform(settings, engine, collector.url)
        with platform.at_work():
            platform.verdict("while-it-hangs.png", 53)
            assert collector.asked.wait(60)
            platform.verdict("while-it-still-hangs.png", 54)
    gone = Platform(settings, engine, collector.url)
    with gone.at_work():
        gone.verdict("nobody-listens.png", 55)
    log = settings.observability.run_dir.with_name(
        "tests.support.processes.memory_worker.log"
    ).read_text()
    assert log.count('"traces_lost"') == 2
    assert "opentelemetry" not in log
