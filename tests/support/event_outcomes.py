"""What parsing an entry may come to, whatever the entry holds."""

from __future__ import annotations

from worker.ingest.events import EventError, Ignored, parse
from worker.ledger.interface import Removal, Upload

BUCKETS = ("uploads",)


def only_known_outcomes(raw: bytes) -> None:
    """Parse, and let nothing through but events and our own error."""
    try:
        found = parse(raw, buckets=BUCKETS)
    except EventError:
        return
    assert found
    for event in found:
        assert isinstance(event, (Upload, Removal, Ignored))
        if not isinstance(event, Ignored):
            assert event.bucket in BUCKETS
            assert 0 < len(event.key.encode()) <= 1024
            assert "\0" not in event.key
