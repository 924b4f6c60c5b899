"""An ingest list with its ledger, and bridges over them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from worker.ingest.bridge import Bridge
from worker.ingest.bridge_metrics import BridgeMetrics
from worker.ledger.postgres import PostgresLedger
from worker.queue.publisher import MemoryPublisher
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings


def event(key: str, name: str = "ObjectCreated:Put", *, sequencer: str = "10") -> dict[str, Any]:
    """Return an S3 record of the bucket `uploads`."""
    return {
        "eventVersion": "2.1",
        "eventName": name,
        "s3": {
            "bucket": {"name": "uploads"},
            "object": {"key": key, "eTag": "e1", "sequencer": sequencer},
        },
    }


class Setting:
    """One ingest list with its ledger; builds bridges over them."""

    def __init__(self, redis: Redis, engine: Engine, settings: Settings) -> None:
        self.redis = redis
        self.engine = engine
        self.settings = settings
        self.ledger = PostgresLedger(engine)
        self.publisher = MemoryPublisher(self.ledger)
        self.storage = MemoryStorage(["uploads"])
        self.metrics = BridgeMetrics()
        self.ingest = settings.redis.key_prefix + "ingest"

    def bridge(self, name: str = "b1", **changes: Any) -> Bridge:
        """Build a bridge."""
        parts: dict[str, Any] = {
            "redis": self.redis,
            "ledger": self.ledger,
            "publisher": self.publisher,
            "storage": self.storage,
            "buckets": ["uploads"],
            "settings": self.settings.redis,
            "storage_settings": self.settings.s3,
            "metrics": self.metrics,
            "name": name,
        }
        return Bridge(**(parts | changes))

    def send(self, *entries: object) -> None:
        """Append entries: bytes as they are, records as S3 events."""
        for entry in entries:
            raw = entry if isinstance(entry, bytes) else json.dumps({"Records": [entry]})
            self.redis.rpush(self.ingest, raw)

    def drain(self, bridge: Bridge) -> None:
        """Step until nothing is left."""
        while bridge.step(wait_s=1):
            if not self.left():
                return

    def left(self) -> int:
        """Count the entries that are still in the ingest list or a bridge's own."""
        # In this order, because entries move from the one to the others.
        waiting = self.redis.llen(self.ingest)
        theirs = self.redis.scan_iter(match=f"{self.ingest}:processing:*")
        return waiting + sum(self.redis.llen(key) for key in theirs)

    def waiting(self) -> int:
        """Count the uploads that were set aside."""
        return self.redis.zcard(f"{self.ingest}:waiting")

    def rejected(self) -> list[dict[str, Any]]:
        """Return what was refused, the newest first."""
        notes = self.redis.lrange(f"{self.ingest}:rejected", 0, -1)
        return [json.loads(note) for note in notes]

    def states(self) -> dict[str, str]:
        """Return the state of every row by key; a key with two rows is an error."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT key, state FROM app.images")).all()
        assert len({row.key for row in rows}) == len(rows)
        return {row.key: row.state for row in rows}

    def count(self, name: str, **labels: str) -> float:
        """Read a counter."""
        return (
            self.metrics.registry.get_sample_value(f"unlatent_bridge_{name}_total", labels) or 0.0
        )
