"""The HTTP service in this process: real application, real decode pool, a scorer by brightness."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.testclient import TestClient

from tests.support.images.bad_files import LIMITS
from worker.scoring.device_thread import InferenceThread
from worker.scoring.memory import MemoryScorer
from worker.serving.app import build_app
from worker.serving.checker import Checker
from worker.serving.keys import Keys
from worker.serving.metrics import HttpMetrics
from worker.serving.service import Service, WaitingPlaces
from worker.settings import Http, Scoring
from worker.storage.memory import MemoryStorage
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from fastapi import FastAPI

    from worker.decoding.pool import DecodePool
    from worker.serving.uploads import Uploads
    from worker.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Rig:
    """The service and what tests look at."""

    app: FastAPI
    service: Service
    client: TestClient

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.contextmanager
def http_service(
    pool: DecodePool,
    *,
    scorer: MemoryScorer | None = None,
    storage: Storage | None = None,
    uploads: Uploads | None = None,
    in_flight_bytes: int = 2**30,
    buckets: Collection[str] = ("uploads",),
    alive: Callable[[], bool] = lambda: True,
    **settings: object,
) -> Iterator[Rig]:
    """Yield a service with these settings of its section `http`; batches hold one image."""
    http = Http.model_validate(settings)
    metrics = Metrics()
    device: InferenceThread = InferenceThread(
        lambda: scorer or MemoryScorer(),
        conclude=lambda scored: scored,
        settings=Scoring(max_batch=1, max_wait_s=0, threads=http.requests),
        beat=lambda: None,
        metrics=metrics,
    )
    device.start()
    checker = Checker(decoder=pool, device=device, metrics=metrics, requests=http.requests)
    threads = ThreadPoolExecutor(4)
    service = Service(
        settings=http,
        keys=Keys(http),
        checker=checker,
        storage=storage or MemoryStorage(["uploads"]),
        storage_threads=threads,
        ledger_threads=threads,
        buckets=buckets,
        metrics=metrics,
        http_metrics=HttpMetrics(metrics.registry),
        max_bytes=LIMITS.max_bytes,
        in_flight_bytes=in_flight_bytes,
        alive=alive,
        waiting=WaitingPlaces(http.requests // 2),
        uploads=uploads,
    )
    app = build_app(service)
    host = "http://localhost" if not service.keys.required else "http://unlatent.example"
    try:
        with TestClient(app, base_url=host, raise_server_exceptions=False) as client:
            yield Rig(app, service, client)
    finally:
        device.stop()
        checker.close()
        threads.shutdown()


class Gate:
    """Holds every batch after the golden ones until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._armed = False

    def arm(self) -> None:
        """Hold from now on."""
        self._armed = True

    def __call__(self, _images: object) -> None:
        """Wait on the device thread."""
        if self._armed:
            self.reached.set()
            assert self.opened.wait(60)


def in_thread(call: object, *arguments: object, **options: object) -> Future:
    """Call in a thread of its own and return the future of its result."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments, **options))  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
