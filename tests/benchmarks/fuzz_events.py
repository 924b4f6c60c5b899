"""Mutates documented events at random and counts what becomes of them; anything else is a fault.

    python -m tests.benchmarks.fuzz_events --events 1000000 --seed 1

The same seed makes the same events. Ends with 1, and prints the entry, when parsing one raised
something other than `EventError` or gave an event that breaks its own bounds.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
from typing import Any

from tests.support.event_samples import SAMPLES
from worker.ingest.events import EventError, Ignored, parse

BUCKETS = ("uploads",)
#: Lengths around the limits, halves of surrogate pairs, numbers at the edges of types.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**30, 0.5, 1e308, "", " ", "null", "0",
    "-1", "7", "\0", "\ud800", "%", "%00", "%ff", "+", "..", "/", "//", "a/../b.jpg", "x" * 200,
    "x" * 201, "x" * 1024, "x" * 1025, "ä" * 600, "%41" * 1024, "A" * 64, "A" * 65, "{}", "[]", "{",
    '{"v": 1}', "e30=", "=", "1.0", "2.0", "2.99999", "0001-01-01T00:00:00+14:00", "9999-12-31",
    "2026-01-02T03:04:05.123456789Z", "image/jpeg", "video/mp4", "uploads", "foreign", [], {}, [[]],
    [{}], {"name": "uploads"}, {"key": "a.jpg"}, {"": ""}, [None] * 1001,
]  # fmt: skip


def mutate(value: Any, chance: random.Random, donors: list[Any]) -> Any:
    """Replace, remove, rename or graft something in one random place of a JSON value."""
    path: list[tuple[Any, Any]] = []
    at = value
    while isinstance(at, (dict, list)) and at and (not path or chance.random() < 0.8):
        step = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        path.append((at, step))
        at = at[step]
    if not path:
        return chance.choice(VALUES)
    holder, step = path[-1]
    kind = chance.randrange(6)
    if kind == 0:
        del holder[step]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice([*map(str, VALUES[:40]), "v", "Records", "data"])] = holder.pop(step)
    elif kind == 2:
        holder[step] = json.dumps(holder[step])
    elif kind == 3:
        # A copy: a value may be grafted below itself.
        holder[step] = json.loads(json.dumps(chance.choice(donors)))
    elif kind == 4 and isinstance(holder[step], str) and holder[step]:
        text = holder[step]
        cut = chance.randrange(len(text))
        holder[step] = text[:cut] + chr(chance.randrange(0x500)) + text[cut + 1 :]
    else:
        holder[step] = json.loads(json.dumps(chance.choice(VALUES)))
    return value


def outcome(raw: bytes) -> str:
    """Parse an entry and name what became of it; whatever is no `EventError` goes through."""
    try:
        found = parse(raw, buckets=BUCKETS)
    except EventError as error:
        return f"refused: {error.reason}"
    names = []
    for event in found:
        if isinstance(event, Ignored):
            names.append(f"ignored: {event.reason}")
            continue
        if event.bucket not in BUCKETS or not 0 < len(event.key.encode()) <= 1024:
            raise AssertionError(f"out of bounds: {event}")
        names.append(type(event).__name__)
    return names[0] if len(set(names)) == 1 else "several kinds"


def main() -> int:
    """Mutate, parse and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    written = [json.dumps(sample.entry) for sample in SAMPLES.values()]
    donors = [sample.entry for sample in SAMPLES.values()]
    counts: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    for _ in range(options.events):
        value = json.loads(chance.choice(written))
        for _ in range(chance.randint(1, 4)):
            value = mutate(value, chance, donors)
        raw = json.dumps(value).encode()
        if chance.random() < 0.1:
            start, end = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
            raw = raw[:start] + chance.randbytes(chance.randrange(9)) + raw[end:]
        try:
            counts[outcome(raw)] += 1
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            print(f"{type(error).__name__}: {error}\n{raw!r}", file=sys.stderr)
            counts[f"UNEXPECTED: {type(error).__name__}"] += 1
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count:>9,}  {name}")
    unexpected = sum(count for name, count in counts.items() if name.startswith("UNEXPECTED"))
    seconds = time.monotonic() - begun
    print(
        f"{options.events:,} mutated events of {len(SAMPLES)} shapes and kinds, seed "
        f"{options.seed}: {unexpected} unexpected exceptions in {seconds:.0f} s"
    )
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
