"""`make bench-peers DATA=… [TAEF2=…] [LIMIT=…] [OUT=…]`: the shipped detector beside its peers.

All score the same pictures in the same forms, by the folds of DATA (`training.data.folds`). Peers
are formulas, fits of a few numbers, and reconstructions by the autoencoder in the bundle or by
TAEF2: what can be had without a download. Numbers read from pictures are kept in OUT, so that a run
that was killed goes on. Writes `peers.json` and `peers.md` there, and prints the former.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from detection.bundle import load_bundle
from detection.detector import Detector
from tests.benchmarks.claims_costs import processor_s
from tests.benchmarks.detector.limited_data import load_limited
from tests.benchmarks.detector.peer_formulas import (
    declared,
    neighbour_residuals,
    spectral_decay,
)
from tests.benchmarks.detector.peer_reconstruction import inversion_distance, perceptual_distance
from tests.benchmarks.detector.peer_table import (
    DeclaredRows,
    OwnDirection,
    Peer,
    measure,
    write_page,
)
from tests.benchmarks.photographlike import make_files
from training.bundles.form_cache import FormCache
from training.bundles.head_branch import HeadBranch, HeadRecipe, thumbnail_reader
from training.data.augmentation import AugmentationConfig
from training.data.bundle_aligner import bundle_aligner
from training.data.taef2 import taef2_aligner
from training.evaluation.feature_space import BundleFeatures
from worker.settings import load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from detection.bundle import Bundle

    Pixels = NDArray[np.uint8]
    Rows = NDArray[np.float32]
    Reader = Callable[[Sequence[Pixels]], list[Rows]]

SIDE = 512
FOLDS = "the folds' training sides"
#: A handful of numbers needs no shrinking.
FEW_NUMBERS = HeadRecipe(strength=1.0, augmented=0)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--taef2", type=Path, default=None, help="folder of TAEF2")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images a set")
    parser.add_argument("--out", type=Path, default=Path("out/peers"))
    options = parser.parse_args(arguments)
    configure(load_settings().observability)  # log lines: standard output is the record's
    entries, folds = load_limited(options.data, options.limit)
    rows = []
    for peer in peers(load_bundle(options.bundle), options.taef2, options.out):
        print(f"{peer.title} …", file=sys.stderr)
        rows.append(measure(peer, entries, folds))
    record = {"images": len(entries), "limit": options.limit, "peers": rows}
    text = json.dumps(record, indent=1)
    (options.out / "peers.json").write_text(text + "\n", encoding="utf-8")
    generated = sum(entry.generated for entry in entries)
    photographs = sum(entry.photograph for entry in entries)
    limit = f" LIMIT={options.limit}" if options.limit else ""
    write_page(
        rows,
        options.out / "peers.md",
        command=f"make bench-peers DATA=…{' TAEF2=…' if options.taef2 else ''}{limit}",
        data=f"{photographs} photographs and {generated} generated images in {len(folds)} folds",
    )
    print(json.dumps(record))
    return 0


def peers(bundle: Bundle, taef2: Path | None, out: Path) -> Iterator[Peer]:
    """Build the rows of the table one after another."""

    def cached(name: str, read: Reader) -> FormCache:
        kept = out / "forms" / bundle.model_version / name
        return FormCache(kept, read, AugmentationConfig())

    def own(title: str, name: str, read: Reader, learnt: str = "nothing") -> Peer:
        branch = OwnDirection(name, cached(name, read), HeadRecipe())
        return Peer(title=title, learnt=learnt, branch=branch, processor_ms=cost_ms(read))

    def fitted(title: str, name: str, read: Reader, recipe: HeadRecipe) -> Peer:
        branch = HeadBranch(name, cached(name, read), recipe)
        return Peer(title=title, learnt=FOLDS, branch=branch, processor_ms=cost_ms(read))

    shipped = bundle.manifest.name
    yield own(f"`{shipped}` as shipped", "shipped", score_reader(bundle), "all of these pictures")
    yield fitted(f"the recipe of `{shipped}`", "features", feature_reader(bundle), HeadRecipe())
    yield fitted("decay of the spectrum", "spectrum", spectral_decay, FEW_NUMBERS)
    yield fitted("NPR residual, its histogram", "residual", neighbour_residuals, FEW_NUMBERS)
    yield fitted(
        "thumbnail of 32 x 32 pixels", "thumbnail", thumbnail_reader, HeadRecipe(augmented=0)
    )
    small, dire = "the bundle's autoencoder", inversion_distance(bundle)
    distance = perceptual_distance(bundle, bundle_aligner(bundle))
    yield own(f"AEROBLADE's distance, {small}", "aeroblade", distance)
    if taef2 is not None:
        distance = perceptual_distance(bundle, taef2_aligner(taef2))
        yield own("AEROBLADE's distance, TAEF2", "aeroblade-taef2", distance)
    yield own("DIRE's distance, the bundle's generator", "dire", dire)
    spent = processor_s(lambda: declared(make_files(1, SIDE)[0]))
    yield Peer(
        title="metadata: EXIF, XMP, PNG texts, C2PA",
        learnt="nothing",
        branch=OwnDirection("metadata", DeclaredRows(), HeadRecipe()),
        processor_ms=1000 * spent,
    )


def score_reader(bundle: Bundle) -> Reader:
    """Return what reads a bundle's fused logit (1,)."""
    detector, fusion = Detector(bundle), bundle.manifest.fusion

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        scores = detector.score(pictures)
        return [np.array([fusion.logit(one.branches)], dtype=np.float32) for one in scores]

    return read


def feature_reader(bundle: Bundle) -> Reader:
    """Return what reads the features (D,) of a bundle's frozen backbone."""
    features = BundleFeatures(bundle)

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        return list(features(pictures).astype(np.float32))

    return read


def cost_ms(read: Reader) -> float:
    """Return the least processor time that reading one picture takes on one thread."""
    (data,) = make_files(1, SIDE)
    picture = np.asarray(Image.open(io.BytesIO(data)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return 1000 * processor_s(lambda: read([picture]))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
