"""What the HTTP service measures of requests; the device thread's metrics are the worker's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_HOOKS = ("stored", "refused", "failed_open", "failed_closed")


class HttpMetrics:
    """Counts requests by route and status; routes are templates, so they hold no key or id."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "unlatent_http_requests", "Requests.", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "unlatent_http_request_seconds",
            "From a request's first byte to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.hooks = Counter(
            "unlatent_http_hooks",
            "Uploads that a hook stored or refused, or whose check failed.",
            ("hook", "outcome"),
            registry=registry,
        )
        # A counter that begins with its first event would hide that one from every alert.
        for outcome in _HOOKS:
            self.hooks.labels("pict-rs", outcome)
