"""The HTTP service's process: decode pool, device thread and, with a ledger, the way into it."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import structlog
import uvicorn

from detection.errors import SettingsError
from worker.decoding.pool import DecodePool
from worker.models.loading import load_detector
from worker.scoring.device_thread import InferenceThread
from worker.serving.app import build_app
from worker.serving.checker import Checker
from worker.serving.keys import Keys
from worker.serving.metrics import HttpMetrics
from worker.serving.service import Service, WaitingPlaces
from worker.storage.s3 import S3Storage
from worker.telemetry.metrics import Metrics
from worker.telemetry.start_steps import start_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from worker.scoring.device.inference_request import InferenceRequest, ScoredRequest
    from worker.scoring.interface import Scorer
    from worker.serving.uploads import Uploads
    from worker.settings import Http, Scoring, Settings
    from worker.storage.interface import Storage

    Device = InferenceThread[InferenceRequest, ScoredRequest[InferenceRequest]]

_log = structlog.get_logger(__name__)

#: Beside a forward pass the device thread does nothing that takes long.
_MARGIN_S = 10.0
#: Objects that are fetched at once.
_STORAGE_THREADS = 16


class Heartbeat:
    """When something last made progress."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._at = time.monotonic()

    def beat(self) -> None:
        """Note progress."""
        self._at = time.monotonic()

    def is_alive(self) -> bool:
        """Say whether the last progress is recent."""
        return time.monotonic() - self._at < self._limit_s


def run_serve(
    settings: Settings, *, load_scorer: Callable[[Scoring], Scorer] = load_detector
) -> None:
    """Serve until SIGTERM or SIGINT; requests that are under way are answered first."""
    http = settings.http
    keys = Keys(http)
    with ExitStack() as stack:
        # Before the model loads: a port that is taken is better known at once.
        port = stack.enter_context(closing(_bind(http)))
        pool = stack.enter_context(closing(DecodePool(settings.intake)))
        with start_step("decoders"):
            pool.start()
        with start_step("services"):
            storage = stack.enter_context(closing(S3Storage(settings.s3)))
            engine = _open_ledger(stack, settings)
        metrics = Metrics()
        heartbeat = Heartbeat(limit_s=settings.scoring.forward_timeout_s + _MARGIN_S)
        with start_step("model"):
            device = _start_device(stack, settings, engine, metrics, heartbeat, load_scorer)
        checker = Checker(decoder=pool, device=device, metrics=metrics, requests=http.requests)
        service = Service(
            settings=http,
            keys=keys,
            checker=stack.enter_context(closing(checker)),
            storage=storage,
            storage_threads=stack.enter_context(ThreadPoolExecutor(_STORAGE_THREADS, "storage")),
            ledger_threads=stack.enter_context(
                ThreadPoolExecutor(settings.postgres.pool_size, "ledger")
            ),
            buckets=set(settings.s3.buckets) - {settings.moderation.evidence_bucket},
            metrics=metrics,
            http_metrics=HttpMetrics(metrics.registry),
            max_bytes=settings.intake.max_bytes,
            in_flight_bytes=settings.intake.in_flight_bytes,
            alive=heartbeat.is_alive,
            waiting=WaitingPlaces(http.requests // 2),
            uploads=None if engine is None else _build_uploads(engine, settings, storage),
        )
        _log.info("serve_ready", host=http.host, port=http.port, ledger=http.ledger)
        config = uvicorn.Config(
            build_app(service),
            # No header may change the address that a request came from.
            proxy_headers=False,
            server_header=False,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(http.timeout_s) + 1,
        )
        uvicorn.Server(config).run(sockets=[port])


def _bind(http: Http) -> socket.socket:
    """Take the port; whoever connects before the model is loaded is refused."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    port = socket.socket(family, socket.SOCK_STREAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        port.bind((http.host, http.port))
    except OSError as error:
        port.close()
        raise SettingsError(
            f"{http.host}:{http.port} cannot be listened on ({error.strerror or error}): set"
            " UNLATENT_HTTP__HOST or UNLATENT_HTTP__PORT"
        ) from error
    return port


def _open_ledger(stack: ExitStack, settings: Settings) -> Engine | None:
    if not settings.http.ledger:
        return None
    from worker.database.engine import build_engine

    engine = build_engine(settings.postgres, application_name="unlatent-serve")
    stack.callback(engine.dispose)
    return engine


def _start_device(
    stack: ExitStack,
    settings: Settings,
    engine: Engine | None,
    metrics: Metrics,
    heartbeat: Heartbeat,
    load_scorer: Callable[[Scoring], Scorer],
) -> Device:
    """Load the champion where there is a registry, and follow it; else the settings' bundle."""
    scoring = settings.scoring
    models = None
    if engine is not None:
        from worker.models.registered_models import RegisteredModels

        models = RegisteredModels(engine, settings, load_scorer)

    def answers(
        scored: Sequence[ScoredRequest[InferenceRequest] | Exception],
    ) -> Sequence[ScoredRequest[InferenceRequest] | Exception]:
        return scored

    device: Device = InferenceThread(
        (lambda: load_scorer(scoring)) if models is None else models.first,
        conclude=answers,
        # Whoever was let in may wait for a batch.
        settings=scoring.model_copy(update={"threads": settings.http.requests}),
        beat=heartbeat.beat,
        metrics=metrics,
    )
    stack.callback(device.stop)
    device.start()
    if models is not None:
        stack.callback(models.follow(device, metrics=metrics, with_shadow=False).stop)
    return device


def _build_uploads(engine: Engine, settings: Settings, storage: Storage) -> Uploads:
    from worker.ledger.postgres import PostgresLedger
    from worker.queue.app import build_app as build_celery
    from worker.queue.publisher import CeleryPublisher
    from worker.serving.uploads import Uploads

    ledger = PostgresLedger(engine)
    return Uploads(
        engine=engine,
        ledger=ledger,
        publisher=CeleryPublisher(build_celery(settings), ledger),
        storage=storage,
        buckets=set(settings.s3.buckets) - {settings.moderation.evidence_bucket},
    )
