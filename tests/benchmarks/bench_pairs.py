"""`make bench-pairs [BUNDLE=…]`: what an aligned pair costs, and what the batched builder saves.

All times are processor times on one thread by the bundle's own generator, so that other work on the
machine does not decide them. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from detection.bundle import load_bundle
from training.alignment import AlignmentConfig, align, batch_for
from training.challenger import lare_of
from training.datasets import FolderStore
from training.originals import lossless
from training.round_trip import bundle_round_trip
from training.sampling import sample
from training.shaders import renderings

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.originals import Original

SIDE, IMAGES, SAMPLES, PASSES = 256, 8, 2, 50


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendering as a source of the builder."""

    original: Original

    @property
    def key(self) -> str:
        """The original's."""
        return self.original.key

    def read(self) -> Original:
        """Return it."""
        return self.original


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="small")
    bundle = load_bundle(parser.parse_args(arguments).bundle)
    torch.set_num_threads(1)
    aligner, lare = bundle_round_trip(bundle), lare_of(bundle)
    if lare is None:
        parser.error(f"bundle {bundle.manifest.name} has no noise predictor to sample with")
    originals = [
        lossless(pixels.copy(), key=name, group=name, source="rendering")
        for name, pixels in renderings(IMAGES, side=SIDE)
    ]
    cells = SIDE // lare.generator.factor
    shape = (lare.noises.shape[1], cells, cells)

    batch = batch_for("cpu")

    def builder() -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = AlignmentConfig(shard_images=IMAGES, batch_size=batch)
            sources = [Rendered(original) for original in originals]
            align(sources, [aligner], FolderStore(Path(folder)), config=config)

    def one_by_one() -> None:
        for original in originals:
            original.coding.encode(aligner.reconstruct([original.pixels])[0])

    aligner.reconstruct([originals[0].pixels])  # the first pass pays for allocations
    forward = (
        processor_s(lambda: aligner.reconstruct([o.pixels for o in originals[:batch]])) / batch
    )
    generated = (
        processor_s(lambda: sample(lare.generator, SAMPLES, shape=shape, seed=0, passes=PASSES))
        / SAMPLES
    )
    batched, single = processor_s(builder), processor_s(one_by_one)
    record = {
        "bundle": bundle.manifest.name,
        "side_px": SIDE,
        "device": "cpu, one thread",
        "batch": batch,
        "reconstruction_s": round(forward, 4),
        f"generated_with_{PASSES}_ddim_steps_s": round(generated, 4),
        "a_pair_is_cheaper_by": round(generated / forward, 1),
        "builder_s_a_pair": round(batched / IMAGES, 4),
        "one_by_one_s_a_pair": round(single / IMAGES, 4),
        "builder_is_faster_by": round(single / batched, 2),
    }
    print(json.dumps(record))
    return 0


def processor_s(work: Callable[[], object]) -> float:
    """Return the processor time of some work, in seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
