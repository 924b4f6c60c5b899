"""The bridge's Prometheus metrics, on a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class BridgeMetrics:
    """What became of the entries of the ingest list; `received` counts entries, the rest events."""

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

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"unlatent_bridge_{name}", documentation, labels, registry=self.registry)
