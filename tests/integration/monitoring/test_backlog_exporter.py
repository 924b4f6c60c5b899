"""What waits is published, by the bridge process, as Prometheus reads it."""

from __future__ import annotations

import json
import socket
import urllib.request
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.support.processes.worker_process import WorkerProcess
from tests.support.waiting import eventually
from worker.database.engine import LedgerUnavailable
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ledger.interface import Backlog, Upload
from worker.ledger.memory import MemoryLedger
from worker.ledger.postgres import PostgresLedger
from worker.monitoring.backlog_exporter import BacklogExporter
from worker.monitoring.database_gauges import DatabaseCollector
from worker.queue import names as queues
from worker.queue.app import build_app
from worker.queue.publisher import CeleryPublisher
from worker.telemetry.health import BRIDGE_ALIVE

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings


def test_what_is_in_flight_still_counts(
    settings: Settings, redis_client: Redis, engine: Engine
) -> None:
    """A leased image has left the queue, and is waited for all the same."""
    ledger = PostgresLedger(engine)
    uploads = [Upload(bucket="b", key=key, etag="e") for key in "abc"]
    registered = ledger.register(uploads)
    CeleryPublisher(build_app(settings), ledger).publish(registered)
    ledger.lease(registered[0].image_id, worker="w", duration=timedelta(seconds=60))
    redis_client.lpop(settings.redis.key_prefix + queues.SCORE)
    metrics = BridgeMetrics()
    BacklogExporter(
        ledger=ledger,
        redis=redis_client,
        key_prefix=settings.redis.key_prefix,
        metrics=metrics,
        gauges=DatabaseCollector(engine),
    ).read()
    value = metrics.registry.get_sample_value
    assert value("unlatent_backlog_images") == 3
    assert value("unlatent_backlog_leases") == 1
    assert value("unlatent_queue_messages", {"queue": queues.SCORE}) == 2
    age_s = value("unlatent_backlog_oldest_seconds")
    assert age_s is not None
    assert 0 < age_s < 60


def test_a_ledger_that_is_away_leaves_the_last_numbers(
    settings: Settings, redis_client: Redis, engine: Engine
) -> None:
    """The exporter goes on reading after an error, and its thread ends with it."""

    class Flaky(MemoryLedger):
        """Answers from the second time on."""

        asked = 0

        def backlog(self) -> Backlog:
            """Count what waits, once the first time is over."""
            self.asked += 1
            if self.asked == 1:
                raise LedgerUnavailable
            return super().backlog()

    ledger = Flaky()
    metrics = BridgeMetrics()
    exporter = BacklogExporter(
        ledger=ledger,
        redis=redis_client,
        key_prefix=settings.redis.key_prefix,
        metrics=metrics,
        gauges=DatabaseCollector(engine),
    )
    with exporter:
        eventually(lambda: ledger.asked == 1, what="a first reading")
    assert metrics.registry.get_sample_value("unlatent_backlog_read_timestamp_seconds") == 0
    exporter.read()
    assert metrics.registry.get_sample_value("unlatent_backlog_read_timestamp_seconds") != 0


def test_the_bridge_process_publishes_and_says_that_it_lives(
    settings: Settings, redis_client: Redis
) -> None:
    """Scraping a running bridge finds an entry that it was sent, and the probe's file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    watched = settings.model_copy(
        update={"observability": settings.observability.model_copy(update={"metrics_port": port})}
    )
    with (
        WorkerProcess(watched, module="worker", arguments=["bridge"]) as bridge,
    ):
        redis_client.rpush(
            settings.redis.key_prefix + settings.redis.ingest_key,
            json.dumps({"v": 1, "bucket": settings.s3.buckets[0], "key": "k", "etag": "e"}),
        )

        def registered() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    page = answer.read().decode()
            except OSError:
                assert bridge.process.poll() is None, bridge.log.read_text()
                return False
            return "unlatent_bridge_registered_total 1.0" in page and (
                "unlatent_backlog_read_timestamp_seconds 0" not in page
            )

        eventually(registered, timeout_s=120, what="the entry in the metrics")
        assert (settings.observability.run_dir / BRIDGE_ALIVE).exists()
        assert bridge.stop() == 0
