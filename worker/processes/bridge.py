"""The bridge process: the bridge and the backlog exporter over one ledger and one Redis."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import redis
from prometheus_client import start_http_server

from worker.database.engine import build_engine
from worker.ingest.bridge import Bridge
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ingest.sqs_bridge import SqsBridge, open_queue
from worker.ledger.postgres import PostgresLedger
from worker.monitoring.backlog_exporter import BacklogExporter
from worker.monitoring.database_gauges import DatabaseCollector
from worker.queue.app import build_app
from worker.queue.publisher import CeleryPublisher
from worker.storage.s3 import S3Storage
from worker.telemetry.health import BRIDGE_ALIVE
from worker.telemetry.start_steps import start_step
from worker.telemetry.tracing import build_tracer

if TYPE_CHECKING:
    from worker.settings import Settings


def run_bridge(settings: Settings, *, name: str | None = None, sqs: str | None = None) -> None:
    """Move uploads from the ingest list to the ledger and the queue, until SIGTERM or SIGINT.

    `name` tells bridges apart and is theirs across restarts; host and process id by default. `sqs`
    is the URL of a queue to take entries from instead of the ingest list. Raises `SettingsError`
    when it is none.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    alive = settings.observability.run_dir / BRIDGE_ALIVE
    alive.parent.mkdir(parents=True, exist_ok=True)
    alive.unlink(missing_ok=True)
    with ExitStack() as stack:
        with start_step("services"):
            parts = _open_parts(stack, settings)
        parts["name"] = name or f"{socket.gethostname()}-{os.getpid()}"
        if sqs is None:
            bridge = Bridge(**parts)
        else:
            queue = stack.enter_context(closing(open_queue(sqs, settings.sqs)))
            bridge = SqsBridge(queue_url=sqs, client=queue, **parts)
        bridge.run(stop, alive=alive.touch)


def _open_parts(stack: ExitStack, settings: Settings) -> dict[str, Any]:
    """Connect to the services and start the exporter; return what every kind of bridge takes."""
    engine = build_engine(settings.postgres, application_name="unlatent-bridge")
    stack.callback(engine.dispose)
    ledger = PostgresLedger(engine)
    storage = stack.enter_context(closing(S3Storage(settings.s3)))
    metrics = BridgeMetrics()
    gauges = DatabaseCollector(engine)
    metrics.registry.register(gauges)
    if settings.observability.metrics_port:
        start_http_server(settings.observability.metrics_port, registry=metrics.registry)
    tracer = stack.enter_context(closing(build_tracer(settings.tracing, service="unlatent-bridge")))
    connection = stack.enter_context(
        redis.Redis.from_url(
            settings.redis.url.get_secret_value(),
            socket_timeout=30,
            socket_connect_timeout=5,
            health_check_interval=25,
        )
    )
    stack.enter_context(
        BacklogExporter(
            ledger=ledger,
            redis=connection,
            key_prefix=settings.redis.key_prefix,
            metrics=metrics,
            gauges=gauges,
        )
    )
    return {
        "redis": connection,
        "ledger": ledger,
        "publisher": CeleryPublisher(build_app(settings), ledger, tracer),
        "storage": storage,
        "buckets": settings.s3.buckets,
        "settings": settings.redis,
        "storage_settings": settings.s3,
        "metrics": metrics,
        # Amazon encodes them all, and its customers' keys are full of spaces.
        "plain_keys": settings.s3.endpoint_url is not None,
        "tracer": tracer,
    }
