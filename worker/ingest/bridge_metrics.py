"""The bridge's Prometheus metrics, on a registry of their own; times are in seconds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class BridgeMetrics:
    """What became of the entries of the ingest list, and what waits in the ledger and the queues.

    `received` counts entries, the other counters events. Every bridge publishes the same backlog:
    take the maximum over them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.received = self._counter("received", "Entries taken from the ingest list.")
        self.registered = self._counter("registered", "Uploads new to the ledger.")
        self.duplicates = self._counter("duplicates", "Uploads that the ledger knew.")
        self.withdrawn = self._counter("withdrawn", "Images withdrawn by removals.")
        self.ignored = self._counter("ignored", "Valid events that ask for nothing.", "reason")
        self.rejected = self._counter("rejected", "Entries that cannot be used.", "reason")
        self.published = self._counter("published", "Messages sent.")
        self.outages = self._counter("outages", "Steps put off because a service was away.")
        self.put_off = self._counter(
            "put_off", "Uploads put off because storage did not say what they are."
        )
        self.waiting = self._gauge("bridge_waiting", "Uploads set aside until storage says it.")
        self.paused = self._gauge("bridge_paused", "1 while storage gives the bridge nothing.")
        self.pending = self._gauge("backlog_images", "Images waiting or in flight.")
        self.leased = self._gauge("backlog_leases", "Leases that run.")
        self.oldest = self._gauge("backlog_oldest_seconds", "Age of the oldest pending image.")
        self.recent_deaths = self._gauge(
            "backlog_recent_deaths", "Images with a death in the last window."
        )
        self.quarantine_paused = self._gauge(
            "backlog_quarantine_paused", "1 while too many deaths are the workers' fault."
        )
        self.read_at = self._gauge("backlog_read_timestamp_seconds", "When that was last read.")
        self.queued = self._gauge("queue_messages", "Messages waiting in a queue.", "queue")

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"unlatent_bridge_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(f"unlatent_{name}", documentation, labels, registry=self.registry)
