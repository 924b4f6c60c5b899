"""The worker process: every part built from the settings, started in order, stopped in reverse.

1. decoding processes and the device thread start; the champion is loaded and its golden image
   scored; from then on the registry's pointers are followed;
2. only then does Celery connect and take messages; the readiness file appears;
3. SIGTERM: no more messages; the checks under way end, are acknowledged, and the rest stops.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog
from celery import signals
from celery.exceptions import SecurityWarning

from worker.database.engine import build_engine
from worker.decoding.pool import DecodePool
from worker.ledger.interface import DeathPolicy
from worker.ledger.postgres import PostgresLedger
from worker.models import score_drift
from worker.models.loading import load_detector
from worker.models.registered_models import RegisteredModels
from worker.moderation.daily_counts import keep_counts
from worker.moderation.flagging_breaker import check_breakers
from worker.moderation.pruning import prune as prune_rows
from worker.queue import names
from worker.queue.app import build_app
from worker.queue.broker_state import RedisBrokerState
from worker.queue.consumer_control import ConsumerControl
from worker.queue.publisher import CeleryPublisher
from worker.queue.redis_qos import install_leak_free_qos
from worker.queue.sweeper import Sweeper
from worker.queue.tasks import register_tasks
from worker.scoring.device.verdict_store import VerdictStore
from worker.scoring.device_thread import InferenceThread
from worker.scoring.evidence import evidence_keeper
from worker.scoring.pipeline import Pipeline
from worker.scoring.storage_breaker import StorageBreaker
from worker.storage.s3 import S3Storage
from worker.telemetry.health import Health
from worker.telemetry.logs import leave_logging_alone
from worker.telemetry.metrics import Metrics
from worker.telemetry.start_steps import start_step
from worker.telemetry.tracing import build_tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery import Celery
    from sqlalchemy import Engine

    from worker.ledger.interface import Verdict
    from worker.scoring.device.leased_request import LeasedRequest
    from worker.scoring.interface import Scorer
    from worker.settings import Scoring, Settings
    from worker.telemetry.tracer import Tracer

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What several parts of the process use."""

    settings: Settings
    metrics: Metrics
    health: Health
    tracer: Tracer
    engine: Engine
    ledger: PostgresLedger
    messages: RedisBrokerState


def run_worker(
    settings: Settings,
    *,
    queues: Sequence[str] = names.QUEUES,
    load_scorer: Callable[[Scoring], Scorer] = load_detector,
) -> int:
    """Run a worker until it is told to stop; returns the exit status of the process."""
    with ExitStack() as stack:
        with start_step("services"):
            shared = _open_shared(stack, settings)
            storage = stack.enter_context(closing(S3Storage(settings.s3)))
        pool = stack.enter_context(closing(DecodePool(settings.intake)))
        with start_step("decoders"):
            pool.start()
        with start_step("model"):
            device = _start_models(stack, shared, load_scorer)
        consumer = ConsumerControl([name for name in names.IMAGE_QUEUES if name in queues])
        breaker = StorageBreaker(
            storage,
            limit=settings.s3.denied_limit,
            pause=consumer.pause,
            resume=consumer.resume,
            last_read=shared.ledger.last_read,
        )
        stack.callback(breaker.stop)
        pipeline = _build_pipeline(
            shared, storage=storage, pool=pool, device=device, breaker=breaker
        )
        install_leak_free_qos()
        with start_step("tasks"):
            app = build_app(settings)
            _register_tasks(app, shared, pipeline)
        metrics = shared.metrics
        metrics.watch("in_flight_bytes", "Decoded bytes in flight.", lambda: pool.budget.used_bytes)
        metrics.watch("paused", "1 while storage gives nothing.", lambda: breaker.is_open)
        if settings.observability.metrics_port:
            stack.callback(metrics.serve(settings.observability.metrics_port))
        return _consume(app, settings, queues, consumer, pipeline, shared.health)


def _open_shared(stack: ExitStack, settings: Settings) -> _Shared:
    health = Health(settings.observability.run_dir)
    tracer = build_tracer(settings.tracing, service="unlatent-worker")
    stack.callback(tracer.close)
    engine = build_engine(settings.postgres, application_name="unlatent-worker")
    stack.callback(engine.dispose)
    deaths = DeathPolicy(
        max_deaths=settings.scoring.max_deaths,
        window=timedelta(seconds=settings.scoring.death_window_s),
        max_in_window=settings.scoring.max_deaths_in_window,
    )
    return _Shared(
        settings=settings,
        metrics=Metrics(),
        health=health,
        tracer=tracer,
        engine=engine,
        ledger=PostgresLedger(engine, deaths=deaths),
        messages=RedisBrokerState(settings.redis),
    )


def _start_models(
    stack: ExitStack, shared: _Shared, load_scorer: Callable[[Scoring], Scorer]
) -> InferenceThread[LeasedRequest, Verdict]:
    """Load the champion on its thread, and follow the pointers of the registry from then on."""
    settings = shared.settings
    models = RegisteredModels(shared.engine, settings, load_scorer)
    verdicts = VerdictStore(shared.ledger, health=shared.health, metrics=shared.metrics)
    device = InferenceThread(
        models.first,
        conclude=verdicts.store,
        settings=settings.scoring,
        beat=shared.health.beat,
        metrics=shared.metrics,
    )
    stack.callback(device.stop)
    stack.callback(verdicts.stop)
    device.start()
    stack.callback(models.follow(device, metrics=shared.metrics, with_shadow=True).stop)
    return device


def _build_pipeline(
    shared: _Shared,
    *,
    storage: S3Storage,
    pool: DecodePool,
    device: InferenceThread[LeasedRequest, Verdict],
    breaker: StorageBreaker,
) -> Pipeline:
    return Pipeline(
        ledger=shared.ledger,
        storage=storage,
        decoder=pool,
        device=device,
        breaker=breaker,
        metrics=shared.metrics,
        settings=shared.settings,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        waiting=shared.messages.waiting,
        evidence=evidence_keeper(
            shared.settings, storage=storage, ledger=shared.ledger, metrics=shared.metrics
        ),
        tracer=shared.tracer,
    )


def _register_tasks(app: Celery, shared: _Shared, pipeline: Pipeline) -> None:
    engine, settings = shared.engine, shared.settings
    register_tasks(
        app,
        pipeline=pipeline,
        periodic={
            names.SWEEP_TASK: Sweeper(
                ledger=shared.ledger,
                publisher=CeleryPublisher(app, shared.ledger, shared.tracer),
                messages=shared.messages,
                settings=settings.queue,
                metrics=shared.metrics,
            ).tick,
            names.BREAKERS_TASK: partial(check_breakers, engine),
            names.COUNTS_TASK: partial(keep_counts, engine),
            names.DRIFT_TASK: lambda: score_drift.record_drift(
                engine, score_drift.measure_drift(engine, settings.drift)
            ),
            names.PRUNE_TASK: partial(prune_rows, engine, settings.retention),
        },
        metrics=shared.metrics,
        tracer=shared.tracer,
    )


def _consume(
    app: Celery,
    settings: Settings,
    queues: Sequence[str],
    consumer: ConsumerControl,
    pipeline: Pipeline,
    health: Health,
) -> int:
    def ready(**_: object) -> None:
        health.ready()
        _log.info("worker_ready", queues=list(queues))

    def stopping(**_: object) -> None:
        health.unready()
        pipeline.stop()

    signals.setup_logging.connect(leave_logging_alone)
    # Two lines a message that our own say better; and as root nothing but JSON is accepted.
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.worker_ready.connect(ready)
    signals.worker_shutting_down.connect(stopping)
    worker = app.Worker(
        pool="threads",  # one process owns the device; threads fill its batches
        concurrency=settings.scoring.threads,
        queues=list(queues),
        hostname=f"unlatent@{socket.gethostname()}",
        without_gossip=True,  # workers coordinate in the ledger and need no talk between them
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    consumer.bind(worker)
    worker.start()
    return worker.exitcode or 0
