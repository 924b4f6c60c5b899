"""The worker's Prometheus metrics: one object a process, on a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WAITS = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Names start with `unlatent_`; times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "From upload to the start of the check.", _WAITS
        )
        self.fetch = self._histogram("fetch_seconds", "Download of one object.", _SECONDS)
        self.decode = self._histogram("decode_seconds", "Decoding, waits included.", _SECONDS)
        self.batch_wait = self._histogram("batch_wait_seconds", "Wait for a batch.", _SECONDS)
        self.batch_size = self._histogram("batch_size", "Images in one batch.", _SIZES)
        self.forward = self._histogram("forward_seconds", "Forward passes of a batch.", _SECONDS)
        self.persist = self._histogram("persist_seconds", "Transaction of a batch.", _SECONDS)
        self.verdicts = self._counter("verdicts", "Verdicts.", "label", "model_version", "role")
        self.inapplicable = self._counter(
            "verdicts_inapplicable", "Verdicts on images that nothing can be told of.", "reason"
        )
        self.reused = self._counter("verdicts_reused", "Verdicts taken from the same bytes.")
        self.failures = self._counter("failures", "Images ended without a verdict.", "reason")
        self.retries = self._counter("retries", "Checks given back for another try.", "error")
        self.messages = self._counter(
            "messages", "Messages: leased, suspect, busy, unknown, or a terminal state.", "kind"
        )
        self.evidence = self._counter("evidence", "Evidence: kept, erased or failed.", "outcome")
        self.shadow = self._counter(
            "shadow_checks", "Checks for the challenger: scored, dropped or failed.", "outcome"
        )
        self.model_changes = self._counter(
            "model_changes",
            "Changes of champion or shadow in this worker: done, refused or unavailable.",
            "role",
            "outcome",
        )
        self._models = Gauge(
            "unlatent_model",
            "1 for what this worker scores with.",
            ("role", "model_version"),
            registry=self.registry,
        )
        self._thresholds = Gauge(
            "unlatent_thresholds_hold",
            "1 where the model's thresholds were measured on files as this worker reads them.",
            ("role", "model_version"),
            registry=self.registry,
        )
        self.sweeps = self._counter("sweeps", "Ticks of the sweeper; none come without beat.")
        self.periodic_runs = self._counter("periodic_runs", "Done work that beat asks for.", "task")
        self.periodic_failures = self._counter(
            "periodic_failures", "Work that beat asks for and that failed.", "task"
        )
        self.swept = self._counter("swept", "Messages that the sweeper sent again.")

    def serve_models(self, models: Mapping[str, tuple[str, bool]]) -> None:
        """Publish which model version has which role here, and whether its thresholds hold."""
        self._models.clear()
        self._thresholds.clear()
        for role, (model_version, holds) in models.items():
            self._models.labels(role, model_version).set(1)
            self._thresholds.labels(role, model_version).set(holds)

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Publish a gauge that is read when it is scraped."""
        gauge = Gauge(f"unlatent_{name}", documentation, registry=self.registry)
        gauge.set_function(value)

    def serve(self, port: int) -> Callable[[], None]:
        """Answer scrapes on a port; returns the function that stops."""
        server, thread = start_http_server(port, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"unlatent_{name}", documentation, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"unlatent_{name}", documentation, labels, registry=self.registry)
