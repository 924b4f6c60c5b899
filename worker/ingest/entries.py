"""Entries of a producer: read into events, and put together for transactions of bounded size."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from worker.ingest.events import EventError, Ignored, Refused, parse_records
from worker.ledger.interface import Removal, Upload

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from detection.errors import PermanentError

#: Records that are committed at once.
RECORDS = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, and what its records ask for."""

    raw: bytes
    events: list[Upload | Removal] = field(default_factory=list)
    #: Events that storage has to complete.
    incomplete: list[Upload | Removal] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    refused: list[tuple[bytes, PermanentError]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryReader:
    """Reads entries about these buckets.

    `plain_keys` says that the store may write keys of S3's records without encoding them.
    """

    buckets: Collection[str]
    plain_keys: bool

    def read(self, raw: bytes) -> Entry:
        """Parse one entry; a bad record costs only itself."""
        entry = Entry(raw)
        try:
            found = parse_records(raw, buckets=self.buckets)
        except EventError as error:
            entry.refused.append((raw, error))
            return entry
        for event in found:
            if isinstance(event, Refused):
                record = raw if len(found) == 1 else json.dumps(event.record, default=str).encode()
                entry.refused.append((record, event.error))
            elif isinstance(event, Ignored):
                entry.ignored.append(event)
            elif self._is_complete(event):
                entry.events.append(replace(event, raw_key=None))
            else:
                entry.incomplete.append(event if self.plain_keys else replace(event, raw_key=None))
        return entry

    def _is_complete(self, event: Upload | Removal) -> bool:
        if event.raw_key is not None and self.plain_keys:
            return False
        return isinstance(event, Removal) or bool(event.etag or event.version_id)


def groups(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Put entries together up to a bound on their records; a larger one stands alone."""
    group: list[Entry] = []
    records = 0
    for entry in entries:
        if group and records + len(entry.events) > RECORDS:
            yield group
            group, records = [], 0
        group.append(entry)
        records += len(entry.events)
    if group:
        yield group
