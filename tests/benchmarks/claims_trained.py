"""Claims that need images: scores of the released bundle, and pairs of short trainings.

Nothing is tested on an image that an arm or the released bundle was trained on: the recipe's own
split holds prompts, scenes and whole sources of photographs back. Every arm of an ablation has the
same network, seed, photographs and number of steps.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detection.aligned import AlignedNet, aggregate, cut_tiles
from detection.branches import LareBranch
from detection.bundle import load_bundle
from detection.detector import Detector
from detection.egre import Egre
from detection.fusion import assign_label
from detection.lare import to_minus_one_one
from detection.networks.branch_configs import AlignedConfig, EgreConfig
from detection.score import Label
from training.bundles.recipe import BundleRecipe
from training.bundles.training_run.run import BundleTrainingRun
from training.data.augmentation import AugmentationConfig
from training.data.bundle_aligner import bundle_aligner
from training.data.manifest import GENERATED, Entry, load_manifest
from training.data.samples import Sample
from training.data.shaders import shader_samples
from training.data.splits import divide
from training.data.taef2 import taef2_aligner
from training.evaluation.calibration import clopper_pearson
from training.evaluation.robustness_tiers import TIERS, resize
from training.evaluation.scoring import auc, harmonised, score_tier
from training.fit.aligned_task import AlignedBatch, AlignedTask
from training.fit.lare_task import LareTask, augmented_views, with_maps
from training.fit.loop import LoopConfig, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from training.fit.loop import Task

    Pixels = NDArray[np.uint8]
    Found = tuple[str, dict[str, Any]]

NETWORK = AlignedConfig(widths=(16, 32, 64, 96), depths=(1, 1, 1, 1), max_tiles=4)
PAIRED = AlignedBatch(pairs=16, unpaired=0)
UNPAIRED = AlignedBatch(pairs=0, unpaired=16)
LOOP = LoopConfig(steps=1, learning_rate=2e-3)
TIMED_STEPS = 8
TEST_TIERS = ("clean", "resize0.5", "webp80")
SHADERS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Laboratory:
    """Labelled images, the released bundle, and where short trainings keep their checkpoints."""

    data: Path
    bundle: str
    run: Path
    minutes: float
    images: int
    #: Folder of TAEF2, where its pairs are asked for instead of the bundle's.
    taef2: Path | None = None

    def row_name(self, name: str) -> str:
        """Name the row of a claim: what rests on pairs has one for each decoder."""
        return f"{name}-taef2" if self.taef2 and EVALUATIONS[name].paired else name

    def budget(self, name: str) -> str:
        """Say what a row is measured with."""
        shown = f"at most {self.images} images of a set"
        if not EVALUATIONS[name].trained:
            return shown
        shown = f"{self.minutes:g} minutes an arm, {shown}, one seed"
        return f"{shown}, pairs by TAEF2" if self.taef2 and EVALUATIONS[name].paired else shown

    def row(self, name: str) -> dict[str, Any]:
        """Measure one claim."""
        evaluation = EVALUATIONS[name]
        bench = Bench(self)
        found, figures = evaluation.measure(bench)
        # Minutes say little of a machine that had other work.
        shown = f"{found}; {bench.steps} steps an arm" if bench.steps else found
        return {
            "name": self.row_name(name),
            "claim": evaluation.claim,
            "paper": evaluation.paper,
            "found": shown,
            "figures": figures,
            "budget": self.budget(name),
        }


class Bench:
    """What the measurements of one row share; `steps` is the length of what was trained."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.steps = 0
        self._laboratory = laboratory
        training, tested = divide(load_manifest(laboratory.data))
        self.training = limited(training, laboratory.images)
        self.tested = limited(tested, laboratory.images)
        if laboratory.taef2 is None:
            aligner = bundle_aligner(load_bundle(laboratory.bundle))
            run = laboratory.run / load_bundle(laboratory.bundle).model_version[:12]
        else:
            aligner, run = taef2_aligner(laboratory.taef2), laboratory.run / "taef2"
        self._run = run / f"{laboratory.minutes:g}-minutes-{laboratory.images}-images"
        self._workshop = BundleTrainingRun(self.training, self._run, BundleRecipe(), [aligner])

    @cached_property
    def detector(self) -> Detector:
        """The released bundle's detector."""
        return Detector.load(self._laboratory.bundle)

    def pairs(self, entries: Sequence[Entry]) -> list[Sample]:
        """Photographs among the entries, with their reconstructions."""
        samples = self._workshop.samples(entry for entry in entries if not entry.generated)
        self._workshop.pairs(samples)
        return samples

    def reconstruct(self, image: Pixels) -> Pixels:
        """Send one image through the bundle's autoencoder."""
        return self._workshop.aligners[0].reconstruct([image])[0]

    def train(self, arm: str, network: nn.Module, task: Task) -> None:
        """Train one arm for as many steps as the first arm of its kind does in the budget."""
        kind = type(network).__name__
        file = self._run / f"steps-{kind}.json"
        if not file.is_file():
            began = time.monotonic()
            untrained = {name: value.clone() for name, value in network.state_dict().items()}
            with tempfile.TemporaryDirectory() as aside:
                fit(network, task, replace(LOOP, steps=TIMED_STEPS), Path(aside))
            network.load_state_dict(untrained)
            step_s = (time.monotonic() - began) / TIMED_STEPS
            file.write_text(
                json.dumps(max(TIMED_STEPS, int(self._laboratory.minutes * 60 / step_s)))
            )
        self.steps = json.loads(file.read_text())
        loop = replace(LOOP, steps=self.steps)
        network.load_state_dict(fit(network, task, loop, self._run / arm))
        network.eval()

    def aligned_arm(
        self,
        arm: str,
        samples: Sequence[Sample],
        batch: AlignedBatch,
        recipe: AugmentationConfig | None = None,
    ) -> dict[str, Any]:
        """Train an aligned network on samples and test it, unless another row did."""
        torch.manual_seed(0)
        network = AlignedNet(NETWORK)
        self.train(arm, network, AlignedTask(samples, recipe or AugmentationConfig(), batch))
        file = self._run / arm / "areas.json"
        if not file.is_file():
            file.write_text(json.dumps(self.areas(network)))
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def areas(self, network: AlignedNet) -> dict[str, Any]:
        """AUC with its interval by tier: photographs against their reconstructions, and all fakes.

        The photographs and fakes are those that were held back.
        """
        reals = self.pairs(self.tested)
        restored = [one for sample in reals for one in sample.reconstructions.values()]
        fakes = [harmonised(entry) for entry in self.tested if entry.generated]
        found: dict[str, Any] = {}
        for tier in TEST_TIERS:
            real = logits_of(network, [TIERS[tier](one.pixels) for one in reals])
            for name, images in (("reconstructions", restored), ("generated", fakes)):
                fake = logits_of(network, [TIERS[tier](image) for image in images])
                generated = np.arange(len(real) + len(fake)) >= len(real)
                found[f"{name}, {tier}"] = asdict(auc(np.concatenate([real, fake]), generated))
        return found


def limited(entries: Sequence[Entry], most: int) -> list[Entry]:
    """Keep at most so many images of every set, the same ones always."""
    kept: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(
        entries, key=lambda one: hashlib.sha256(one.path.name.encode()).hexdigest()
    ):
        if len(kept[entry.set]) < most:
            kept[entry.set].append(entry)
    return [entry for entries in kept.values() for entry in entries]


def logits_of(network: AlignedNet, images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Score images on their tiles: (N,)."""
    found = []
    with torch.inference_mode():
        for image in images:
            tiles = cut_tiles(image, NETWORK)
            found.append(aggregate(network(tiles), [len(tiles)]).item())
    return np.array(found)


def as_fakes(samples: Sequence[Sample], images: Sequence[Pixels]) -> list[Sample]:
    """Images as generated samples that stand by themselves."""
    return [
        Sample(replace(sample.entry, label=GENERATED, family="own"), image, lossy=False)
        for sample, image in zip(samples, images, strict=True)
    ]


def webp_false_positives(bench: Bench) -> Found:
    """Photographs flagged by the released bundle, as JPEG and as WebP."""
    photographs = [entry for entry in bench.tested if not entry.generated]
    manifest = bench.detector.bundle.manifest
    figures: dict[str, Any] = {}
    for tier in ("clean", "webp80"):
        scored = score_tier(bench.detector, photographs, tier)
        fused = scored.logits.fused(manifest.fusion)
        labels = [assign_label(one, manifest.operating_points, manifest.policy)[0] for one in fused]
        hits = labels.count(Label.GENERATED)
        low, high = clopper_pearson(hits, len(labels))
        figures[tier] = {"flagged": hits, "photographs": len(labels), "low": low, "high": high}
    shown = [
        f"{part['flagged']}/{part['photographs']} ({part['low']:.1%} to {part['high']:.1%}) {tier}"
        for tier, part in figures.items()
    ]
    return ", ".join(shown), figures


def _lare_branch(bench: Bench) -> LareBranch:
    branch = bench.detector.branches["lare"]
    assert isinstance(branch, LareBranch)
    return branch


def ensembles(bench: Bench) -> Found:
    """AUC of the released lare branch with the whole noise bank and with one noise of it."""
    branch = _lare_branch(bench)
    whole = branch.noises
    figures: dict[str, Any] = {}
    for count in (1, len(whole)):
        branch.noises = whole[:count]
        scored = score_tier(bench.detector, bench.tested, "clean")
        area = auc(scored.logits.branches["lare"], scored.logits.generated)
        figures[str(count)] = asdict(area)
    return compared(figures), figures


def aligned_training(bench: Bench) -> Found:
    """Pairs, against as many fakes whose content and size differ from the photographs'."""
    samples = bench.pairs(bench.training)
    others = [
        bench.reconstruct(resize(one.pixels, 256 / min(one.pixels.shape[:2])))
        for one in samples[1::2]
    ]
    unaligned = [*samples[::2], *as_fakes(samples[1::2], others)]
    return bench_arms(
        {
            "aligned": lambda: bench.aligned_arm("aligned", samples, PAIRED),
            "unaligned": lambda: bench.aligned_arm("unaligned", unaligned, UNPAIRED),
        },
        shown=("reconstructions, clean", "reconstructions, resize0.5", "generated, clean"),
    )


def paired_batches(bench: Bench) -> Found:
    """The same reconstructions beside their photographs in a batch, and apart from them."""
    samples = bench.pairs(bench.training)
    partners = [next(iter(one.reconstructions.values())) for one in samples]
    apart = [*samples, *as_fakes(samples, partners)]
    return bench_arms(
        {
            "paired": lambda: bench.aligned_arm("aligned", samples, PAIRED),
            "unpaired": lambda: bench.aligned_arm("unpaired", apart, UNPAIRED),
        },
    )


def shader_content(bench: Bench) -> Found:
    """Shader renderings in the photographs' place."""
    samples = bench.pairs(bench.training)
    rendered = shader_samples(SHADERS)
    for one in rendered:
        one.reconstructions["own"] = bench.reconstruct(one.pixels)
    return bench_arms(
        {
            "photographs": lambda: bench.aligned_arm("aligned", samples, PAIRED),
            "shaders": lambda: bench.aligned_arm("shaders", rendered, PAIRED),
        },
    )


def webp_augmentation(bench: Bench) -> Found:
    """WebP among the augmentations, and not."""
    samples = bench.pairs(bench.training)
    without = AugmentationConfig(webp_p=0.0)
    return bench_arms(
        {
            "with WebP": lambda: bench.aligned_arm("aligned", samples, PAIRED),
            "without": lambda: bench.aligned_arm("no-webp", samples, PAIRED, without),
        },
        shown=("reconstructions, webp80", "generated, webp80"),
    )


def error_map(bench: Bench) -> Found:
    """EGRE with its error map, and with zeros in its place."""
    config, recipe = bench.detector.bundle.manifest.lare, AugmentationConfig()
    assert config is not None
    generator, noises = _lare_branch(bench).generator, _lare_branch(bench).noises
    crop = config.side * 7 // 8

    def items(entries: Sequence[Entry], seed: int) -> list[Any]:
        views = augmented_views(
            bench._workshop.samples(entries), recipe, config, copies=1, seed=seed
        )
        return list(with_maps(views, generator, noises, config))

    training, tested = items(bench.training, 0), items(bench.tested, 1)
    generated = np.array([item.entry.generated for item in tested])
    figures: dict[str, Any] = {}
    for name, used in (("map on", True), ("map off", False)):
        torch.manual_seed(0)
        network = Egre(EgreConfig(use_map=used))
        task = LareTask(training, crop=crop, factor=generator.factor)
        bench.train(name.replace(" ", "-"), network, task)
        logits = []
        with torch.inference_mode():
            for item in tested:
                error = torch.from_numpy(item.error)[None].float()
                logits.append(network(to_minus_one_one(np.stack([item.view])), error).item())
        figures[name] = asdict(auc(np.array(logits), generated))
    return compared(figures), figures


def bench_arms(
    arms: dict[str, Callable[[], dict[str, Any]]],
    *,
    shown: Sequence[str] = ("reconstructions, clean", "generated, clean"),
) -> Found:
    """Train and test each arm; shown are some forms of the test."""
    figures = {name: arm() for name, arm in arms.items()}
    lines = [
        f"{form}: " + compared({name: part[form] for name, part in figures.items()})
        for form in shown
    ]
    return "; ".join(lines), figures


def compared(areas: dict[str, Any]) -> str:
    """Show areas with their intervals side by side."""
    return ", ".join(
        f"{name} {part['value']:.3f} ({part['low']:.3f} to {part['high']:.3f})"
        for name, part in areas.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One claim: what it says, what its paper found, and how it is measured."""

    claim: str
    measure: Callable[[Bench], Found]
    paper: str | None = None
    trained: bool = True
    #: Whether its arms train on pairs of photographs and reconstructions.
    paired: bool = True


EVALUATIONS = {
    "webp-false-positives": Evaluation(
        claim="photographs flagged by the released bundle, trained with WebP among its codecs",
        measure=webp_false_positives,
        trained=False,
        paired=False,
    ),
    "ensemble": Evaluation(
        claim="AUC of the released lare branch with one noise and with its bank",
        measure=ensembles,
        trained=False,
        paired=False,
    ),
    "aligned-training": Evaluation(
        claim="aligned pairs beat fakes of other content and size (AUC)", measure=aligned_training
    ),
    "paired-batches": Evaluation(
        claim="a pair in one batch beats the same images apart (AUC)", measure=paired_batches
    ),
    "shaders": Evaluation(
        claim="shader renderings serve in place of photographs (AUC)", measure=shader_content
    ),
    "webp-augmentation": Evaluation(
        claim="training with WebP helps on WebP (AUC)", measure=webp_augmentation
    ),
    "error-map": Evaluation(
        claim="EGRE gains by its error map (AUC)", measure=error_map, paired=False
    ),
}


def needs_images(name: str) -> str:
    """The claim of a row that has not been measured."""
    return EVALUATIONS[name].claim
