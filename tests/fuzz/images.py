"""Send mutated images through the decode pool: `make fuzz-images COUNT=50000 SEED=1`.

Every image must decode or be refused by a class of the exception tree with a message. What kills or
hangs a decoding process, or fails in a way that the decoder does not foresee, is kept in a folder
and named; then the exit status is 1. The same seed and number give the same bytes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detection.errors import PermanentError
from tests.support.images import bad_files, layouts
from worker.decoding.pool import DecodeError, DecodePool, DecoderCrashed, DecodeTimeout
from worker.settings import Intake

_FAULTS = (DecoderCrashed, DecodeTimeout, DecodeError)
_PROCESSES = 2
_WAIT_S = 300.0


def _originals() -> list[bytes]:
    files = bad_files.accepted() | layouts.browser_layouts() | layouts.heif_layouts()
    # One TIFF in seven: they are many, and much alike.
    return [
        *files.values(),
        *list(layouts.tiff_layouts().values())[::7],
        *bad_files.animated().values(),
    ]


def mutated(original: bytes, chance: random.Random) -> bytes:
    """Overwrite, cut, repeat or exchange pieces, mostly near the start where headers are."""
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        reach = chance.choice((64, 600, len(data)))
        at = chance.randrange(max(1, min(len(data), reach)))
        length = chance.choice((1, 1, 2, 4, 4, 8, 40))
        match chance.choice(("bytes", "number", "flip", "cut", "repeat", "move", "flip", "end")):
            case "bytes":
                data[at : at + length] = chance.randbytes(length)
            case "number":
                value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1))
                size = chance.choice((2, 4))
                order = chance.choice(("big", "little"))
                data[at : at + size] = (value % 256**size).to_bytes(size, order)
            case "flip":
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
            case "cut":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length] * chance.choice((1, 1, 50))
            case "move":
                other = chance.randrange(max(1, len(data)))
                data[at : at + length] = data[other : other + length]
            case _:
                del data[len(data) - chance.randrange(max(1, len(data) // 4)) :]
    return bytes(data)


def main() -> int:
    """Run the mutations and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz-images"))
    told = parser.parse_args()
    originals = _originals()
    pool = DecodePool(Intake(processes=_PROCESSES, timeout_s=20.0))
    pool.start()
    outcomes: Counter[str] = Counter()
    slowest = (0.0, 0)

    def one(number: int) -> tuple[str, float]:
        chance = random.Random(f"{told.seed} {number}")
        data = mutated(chance.choice(originals), chance)
        begun = time.monotonic()
        try:
            try:
                decoding = pool.decode(data, wait_s=_WAIT_S)
            except DecodeTimeout:
                # A machine that is busy otherwise is slow as well; a hang is one alone, too.
                decoding = pool.decode(data, alone=True, wait_s=_WAIT_S)
            with decoding as decoded:
                assert decoded.pixels.shape[2] == 3
                outcome = "decoded"
        except _FAULTS as error:
            outcome = f"FAULT {error.reason}"
            told.keep.mkdir(parents=True, exist_ok=True)
            (told.keep / f"{told.seed}-{number}.bin").write_bytes(data)
            print(f"{number}: {error.reason}: {str(error)[:300]}", flush=True)
        except PermanentError as error:
            outcome = error.reason if str(error) else "FAULT refused without words"
        return outcome, time.monotonic() - begun

    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(_PROCESSES) as threads:
            for number, (outcome, spent_s) in enumerate(threads.map(one, range(told.count)), 1):
                outcomes[outcome] += 1
                slowest = max(slowest, (spent_s, number - 1))
                if number % 5000 == 0:
                    print(f"{number} in {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        pool.close()
    print(f"{told.count} mutated images of {len(originals)}, seed {told.seed}")
    for outcome, count in outcomes.most_common():
        print(f"{count:8} {outcome}")
    print(f"slowest: number {slowest[1]}, {slowest[0]:.1f} s")
    return int(any(outcome.startswith("FAULT") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
