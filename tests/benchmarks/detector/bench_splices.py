"""`make bench-splices DATA=… [BUNDLE=…] [TAEF2=…] [LIMIT=…]`: whether evidence points.

Into photographs it pastes a square of another picture, and compares the map of what the backbone
decided with where the square is: the AUC over the cells of the map, averaged over pictures, with a
bootstrap interval over pictures. Patches are of generated images, of the photograph's own
reconstruction by an autoencoder (nothing but the decoder's traces differs), and, to compare with,
of other photographs. Prints one JSON object.

The shipped bundle was trained on the project's own images: their figures flatter it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detection.bundle import load_bundle
from detection.detector import Detector
from tests.support.images.splices import paste, pointing_auc
from training.data.bundle_aligner import bundle_aligner
from training.data.manifest import load_manifest
from training.data.samples import read_pixels
from training.data.taef2 import taef2_aligner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from training.data.aligners import Aligner
    from training.data.manifest import Entry

    Pixels = NDArray[np.uint8]

BOOTSTRAPS = 1000
#: Smaller photographs leave too small a patch.
MIN_SIDE = 256


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--taef2", type=Path, default=None, help="folder of TAEF2")
    parser.add_argument("--limit", type=int, default=100, help="so many photographs")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    if bundle.manifest.backbone is None:
        parser.error(f"{bundle.folder} has no backbone: its evidence is another")
    aligners: list[Aligner] = [bundle_aligner(bundle)]
    if options.taef2 is not None:
        aligners.append(taef2_aligner(options.taef2))
    entries = load_manifest(options.data)
    figures = measure(Detector(bundle), entries, aligners, limit=options.limit)
    print(json.dumps({"model_version": bundle.model_version, "patches": figures}))
    return 0


def measure(
    detector: Detector, entries: Sequence[Entry], aligners: Sequence[Aligner], *, limit: int
) -> dict[str, Any]:
    """Return the mean AUC by kind of patch, with its interval and the number of pictures."""
    rng = np.random.default_rng(0)
    areas: dict[str, list[float]] = defaultdict(list)
    photographs = shuffled([one for one in entries if one.photograph], rng)
    generated = iter(shuffled([one for one in entries if one.generated], rng))
    others = iter(photographs[::-1])
    for done, host in enumerate(islice(pictures(photographs), limit), start=1):
        donors = {
            "generated image": next(pictures(generated)),
            "another photograph": next(pictures(others)),
            **{f"own, by {one.name}": one.reconstruct([host])[0] for one in aligners},
        }
        splices = {name: paste(host, donor, rng) for name, donor in donors.items()}
        scores = detector.score([splice.pixels for splice in splices.values()])
        for (name, splice), score in zip(splices.items(), scores, strict=True):
            assert score.contributions is not None
            areas[name].append(pointing_auc(score.contributions, splice))
        print(f"{done} of {limit} photographs", file=sys.stderr)
    return {name: interval(np.array(values)) for name, values in areas.items()}


def shuffled(entries: Sequence[Entry], rng: np.random.Generator) -> list[Entry]:
    """Return the entries in a drawn order."""
    return [entries[index] for index in rng.permutation(len(entries))]


def pictures(entries: Iterator[Entry] | Sequence[Entry]) -> Iterator[Pixels]:
    """Read the pictures that are large enough."""
    for entry in entries:
        pixels = read_pixels(entry)[0]
        if min(pixels.shape[:2]) >= MIN_SIDE:
            yield pixels


def interval(values: NDArray[np.float64]) -> dict[str, float]:
    """State the mean of values (N,) with the 95 % interval of a bootstrap."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(BOOTSTRAPS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "auc": round(float(values.mean()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "pictures": len(values),
    }


if __name__ == "__main__":
    sys.exit(main())
