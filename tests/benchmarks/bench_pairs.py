"""`make bench-pairs [BUNDLE=…]`: what an aligned pair costs, and how fast the loop's stages are.

Times are processor times on one thread by the bundle's own generator, so that other work on the
machine does not decide them; the stages' rates are those of their own log lines, by the clock, on
one thread. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from structlog.testing import capture_logs

from detection.bundle import load_bundle, sha256_of
from detection.detector import Detector
from training.bundles.challenger import ChallengerRecipe, fine_tune, lare_of
from training.bundles.challenger_data import SamplingPlan
from training.data.alignment import AlignmentConfig, batch_for, build_pairs
from training.data.bundle_aligner import bundle_aligner
from training.data.diffusion_sampling import sample
from training.data.manifest import GENERATED
from training.data.originals import lossless
from training.data.shaders import renderings
from training.data.shards import FolderStore, extract, read_samples
from training.evaluation.score_cache import ScoreCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from detection.bundle import Bundle
    from training.data.aligners import Aligner
    from training.data.originals import Original

SIDE, IMAGES, SAMPLES, PASSES = 256, 8, 2, 50
#: Steps that are timed a branch; as many before them warm up.
STEPS = 10


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
    aligner, lare = bundle_aligner(bundle), lare_of(bundle)
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
            build_pairs(sources, [aligner], FolderStore(Path(folder)), config=config)

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
        "images_per_s": stage_rates(bundle, aligner, originals),
    }
    print(json.dumps(record))
    return 0


def stage_rates(
    bundle: Bundle, aligner: Aligner, originals: Sequence[Original]
) -> dict[str, float]:
    """Return images a second of aligning, of teaching each branch, and of scoring one form."""
    fakes = [
        replace(one, key=f"fake-{one.key}", group=f"fake-{one.group}", label=GENERATED)
        for one in originals
    ]
    recipe = ChallengerRecipe(sampling=SamplingPlan(validation=0.0, partial_noise_images=4))
    loop = replace(recipe.loop, steps=2 * STEPS, log_every=STEPS)
    with tempfile.TemporaryDirectory() as folder, capture_logs() as logs:
        root = Path(folder)
        build_pairs(
            [Rendered(original) for original in originals], [aligner], FolderStore(root / "pairs")
        )
        store = FolderStore(root / "mixed")
        dataset = build_pairs([Rendered(one) for one in (*originals, *fakes)], [aligner], store)
        files = list(read_samples(store, dataset))
        fine_tune(files, bundle, replace(recipe, loop=loop), root / "run")
        entries = extract(files, root / "images")
        digests = {entry.path: sha256_of(entry.path) for entry in entries}
        cache = ScoreCache(root / "scores.jsonl", bundle.model_version)
        cache.score(Detector(bundle), entries, digests, "clean")
    rates: dict[str, float] = {}
    for line in logs:
        if line["event"] == "pairs_built":
            rates.setdefault("align", line["images_per_s"])
        elif line["event"] == "training_step_done":
            rates[f"train {line['run']}"] = line["images_per_s"]
        elif line["event"] == "images_scored":
            rates["evaluate"] = line["images_per_s"]
    return rates


def processor_s(work: Callable[[], object]) -> float:
    """Return the processor time of some work, in seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
