"""`make bench-pair-kinds DATA=… [STEPS=600] [IMAGES=40] [OUT=…]`: pairs by other generators.

What pairs by an autoencoder that was trained against a critic, and by a diffusion model on pixels,
gain on images of their kind, and cost on those of latent diffusion. Two networks of each kind are
trained on the photographs of the training side (`training.data.splits`): one makes the pairs that
the aligned branch learns from, the other, of other widths, what it is tested on, from photographs
of the calibration side. Generated images of DATA stand beside. Every arm has the same network, seed
and photographs. What is trained is kept in OUT, so that a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detection.aligned import AlignedNet
from tests.benchmarks.claims_trained import LOOP, NETWORK, PAIRED, limited, logits_of
from training.bundles.recipe import BundleRecipe
from training.bundles.training_run.run import BundleTrainingRun
from training.data.augmentation import AugmentationConfig
from training.data.manifest import load_manifest
from training.data.splits import divide
from training.evaluation.scoring import auc, auc_gain, harmonised
from training.fit.aligned_task import AlignedTask
from training.fit.generator_tasks import AutoencoderSpec
from training.fit.loop import fit
from training.fit.pixel_task import PixelSpec
from worker.settings import load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.data.manifest import Entry
    from training.data.samples import Sample

#: The kinds of generators, and what the aligned branch learns from in each arm.
KINDS = ("latent", "adversarial", "pixels")
ARMS = {
    "latent": ("latent",),
    "and adversarial": ("latent", "adversarial"),
    "and pixels": ("latent", "pixels"),
    "all three": KINDS,
}
#: What the data's own generated images are called in the table.
FOREIGN = "the data's generated images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Makers:
    """A network of each kind, by their widths."""

    widths: tuple[int, ...]
    pixel_widths: tuple[int, ...]

    @property
    def kinds(self) -> dict[str, AutoencoderSpec | PixelSpec]:
        """The networks by kind."""
        return {
            "latent": AutoencoderSpec(widths=self.widths),
            "adversarial": AutoencoderSpec(widths=self.widths, adversarial=True),
            "pixels": PixelSpec(widths=self.pixel_widths),
        }

    def recipe(self, steps: int) -> BundleRecipe:
        """Return a recipe that trains them for so many steps each."""
        latent, adversarial, pixels = self.kinds.values()
        assert isinstance(latent, AutoencoderSpec)
        assert isinstance(adversarial, AutoencoderSpec)
        assert isinstance(pixels, PixelSpec)
        plain = BundleRecipe()
        return replace(
            plain,
            autoencoders=(latent, adversarial),
            pixels=pixels,
            autoencoder_loop=replace(plain.autoencoder_loop, steps=steps),
            predictor_loop=replace(plain.predictor_loop, steps=steps),
        )


TAUGHT = Makers(widths=(16, 32, 64, 64), pixel_widths=(32, 64, 64))
HELD_BACK = Makers(widths=(24, 48, 96), pixel_widths=(24, 48, 96))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--steps", type=int, default=600, help="of every training")
    parser.add_argument("--images", type=int, default=40, help="at most so many of a set")
    parser.add_argument("--out", type=Path, default=Path("out/pair-kinds"))
    options = parser.parse_args(arguments)
    configure(load_settings().observability)  # log lines: standard output is the record's
    record = measure(options.data, options.out, steps=options.steps, images=options.images)
    (options.out / "pair-kinds.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    command = f"make bench-pair-kinds DATA=… STEPS={options.steps} IMAGES={options.images}"
    (options.out / "pair-kinds.md").write_text(write_page(record, command), "utf-8")
    print(json.dumps(record))
    return 0


def measure(data: Path, out: Path, *, steps: int, images: int) -> dict[str, Any]:
    """State by arm and by what it is tested on the AUC, and its gain over the first arm."""
    training, tested = (limited(side, images) for side in divide(load_manifest(data)))
    taught = paired(training, training, out / "taught", TAUGHT, steps)
    reals = paired(training, tested, out / "held-back", HELD_BACK, steps)
    groups = np.array([one.entry.group for one in reals])
    foreign = [entry for entry in tested if entry.generated]
    fakes = {
        kind: ([one.reconstructions[spec.name] for one in reals], groups)
        for kind, spec in HELD_BACK.kinds.items()
    }
    fakes[FOREIGN] = (
        [harmonised(entry) for entry in foreign],
        np.array([entry.group for entry in foreign]),
    )
    rows: dict[str, Any] = {}
    alone: dict[str, NDArray[np.float64]] = {}
    for arm, kinds in ARMS.items():
        network = train(out / "arms" / arm.replace(" ", "-"), taught, kinds, steps)
        real = logits_of(network, [one.pixels for one in reals])
        rows[arm] = {}
        for name, (made, of_made) in fakes.items():
            found = np.concatenate([real, logits_of(network, made)])
            generated = np.arange(len(found)) >= len(real)
            drawn = np.concatenate([groups, of_made])
            first = alone.setdefault(name, found)
            rows[arm][name] = {
                "auc": asdict(auc(found, generated, groups=drawn)),
                "gain": asdict(auc_gain(found, first, generated, groups=drawn)),
            }
    return {"photographs": len(reals), FOREIGN: len(foreign), "taught": len(taught), "arms": rows}


def paired(
    training: Sequence[Entry], chosen: Sequence[Entry], run: Path, makers: Makers, steps: int
) -> list[Sample]:
    """Train generators on the photographs of one side; send those of another through them."""
    made = BundleTrainingRun(training, run, makers.recipe(steps))
    run.mkdir(parents=True, exist_ok=True)
    samples = made.samples(entry for entry in chosen if entry.photograph)
    made.pairs(samples)
    return samples


def train(run: Path, taught: Sequence[Sample], kinds: Sequence[str], steps: int) -> AlignedNet:
    """Train the aligned branch's network on the pairs of some kinds."""
    names = [TAUGHT.kinds[kind].name for kind in kinds]
    samples = [
        replace(one, reconstructions={name: one.reconstructions[name] for name in names})
        for one in taught
    ]
    torch.manual_seed(0)
    network = AlignedNet(NETWORK)
    task = AlignedTask(samples, AugmentationConfig(), PAIRED)
    network.load_state_dict(fit(network, task, replace(LOOP, steps=steps), run))
    return network.eval()


def write_page(record: Mapping[str, Any], command: str) -> str:
    """Write the table with what it was measured by and on."""
    tested = next(iter(record["arms"].values()))
    lines = [
        "# Pairs by generators that are no latent diffusion",
        "",
        f"Written by `{command}`. An aligned branch learns from {record['taught']} photographs and",
        "their reconstructions, and is tested on others: by the AUC of",
        f"{record['photographs']} photographs against their reconstructions by a network of each",
        "kind that made no pair of the training, and against the data's own generated images",
        f"({record[FOREIGN]}). Gains are over the first row, by a paired bootstrap of prompts and",
        "scenes; intervals are 95 %; one seed. Adversarial: an autoencoder trained against a",
        "critic. Pixels: noised and denoised by a diffusion model without an autoencoder.",
        "",
        f"| pairs by | {' | '.join(f'{name}: AUC, gain' for name in tested)} |",
        f"| --- |{' --- |' * len(tested)}",
    ]
    for arm, figures in record["arms"].items():
        cells = [
            f"{_shown(found['auc'], '.3f')}, {_shown(found['gain'], '+.3f')}"
            for found in figures.values()
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _shown(figure: Mapping[str, float], style: str) -> str:
    value, low, high = (format(figure[name], style) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
