"""The quality report: what a bundle is worth on any folder of labelled images.

Thresholds come from the bundle and never from these images. Every figure is stated for the images
harmonised in codec and re-encoded by each tier, and for the files as they were uploaded.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detection.bundle import sha256_of
from detection.errors import SettingsError
from detection.fusion import find_point, label_of
from detection.score import Label
from training.audit import audit
from training.calibration import (
    ReliabilityBin,
    class_weights,
    clopper_pearson,
    expected_calibration_error,
    reliability,
)
from training.corpus import GENERATOR_CODEC, read_pixels
from training.evaluation import RAW, Interval, auc, auc_gain
from training.finishing import snapshot_digest
from training.logit_cache import LogitCache
from training.manifest import load_manifest
from training.nuisances import SourceFile
from training.recipe import BundleRecipe, divide
from training.tiers import TIERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle import Bundle
    from detection.detector import Detector
    from detection.fusion import OperatingPoint
    from training.audit import Probe
    from training.evaluation import Scored
    from training.manifest import Entry

    Progress = Callable[[str, int, int], None]

#: What is scored: every tier of the harmonised files, and the files as they are.
FORMS = (*TIERS, RAW)
#: The form in which mistakes are listed.
MISTAKES_FORM = "clean"
#: How many of the worst mistakes of each kind are listed.
LISTED = 24
#: The detector refuses smaller images.
MIN_SIDE = 64

UNKNOWN_MEMBERSHIP = (
    "A bundle does not tell which images it was trained on, and this folder as a whole is not the"
    " snapshot that this one names. If it was trained on some of these images, every figure here"
    " flatters it."
)
KNOWN_MEMBERSHIP = (
    "This folder is the snapshot that the bundle was trained on. Only images that no branch was"
    " trained on are evaluated: prompts and scenes held back, and whole sources of photographs."
    " The fusion and the thresholds were fitted on these images, so their false positives are not"
    " those of unseen photographs; the bundle's card states leave-one-out figures."
)


STEADY = (
    "In service this bundle also checks that `generated` survives a mild re-encoding, and says"
    " `unsure` if not. This report labels without that check: in service no more images are"
    " labelled `generated` than here, photographs and fakes alike, and as many more `unsure`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of images with its exact 95 % interval (Clopper and Pearson)."""

    hits: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One set, source or family, or a whole side, against all images of the other side.

    `seen` says whether the bundle was trained on the family, and is None of photographs. `at` maps
    a published operating point to the share at or above its threshold: false positives of
    photographs, recall of generated images; `flagged` and `unsure` are shares by label. Areas under
    the ROC curve are None when the folder holds one side only; `gain` is what fusion gains over
    `best_branch`, the better branch on these very images.
    """

    name: str
    kind: str
    generated: bool
    seen: bool | None
    images: int
    auc: Interval | None
    branches: Mapping[str, Interval]
    best_branch: str | None
    gain: Interval | None
    at: Mapping[str, Rate]
    flagged: Rate
    unsure: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFigures:
    """The figures of one form; calibration is stated at even odds, as the fusion was fitted."""

    groups: tuple[Group, ...]
    calibration_error: float | None
    bins: tuple[ReliabilityBin, ...]

    def of(self, kind: str) -> list[Group]:
        """Return the groups of a kind: "side", "family", "set" or "source"."""
        return [group for group in self.groups if group.kind == kind]

    def side(self, *, generated: bool) -> Group | None:
        """Return a whole side, or None when the folder has no such images."""
        return next((group for group in self.of("side") if group.generated == generated), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A photograph labelled `generated`, or a generated image labelled `real`."""

    path: str
    set: str
    logit: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Everything that the report states."""

    bundle: str
    model_version: str
    seen_families: tuple[str, ...]
    flag_point: str
    doubt_point: str
    operating_points: tuple[OperatingPoint, ...]
    images: Mapping[str, int]
    families: Mapping[str, bool]
    limit: int | None
    snapshot_matches: bool
    warnings: tuple[str, ...]
    refused: Mapping[str, str]
    shortcut: Mapping[str, Probe]
    forms: Mapping[str, FormFigures]
    accusations: tuple[Mistake, ...]
    misses: tuple[Mistake, ...]

    @property
    def published(self) -> list[OperatingPoint]:
        """The operating points that enough photographs support, strictest first."""
        return published(self.operating_points)

    def to_json(self) -> str:
        """Return the report as JSON."""
        points = [point.model_dump() for point in self.operating_points]
        return json.dumps(asdict(self) | {"operating_points": points}, indent=1)


@dataclass(frozen=True, slots=True)
class Stock:
    """What a folder holds: readable entries, their sha256 by path, and why others were refused."""

    entries: list[Entry]
    digests: dict[Path, str]
    refused: dict[str, str]


def evaluate(
    detector: Detector,
    data: Path,
    out: Path,
    *,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> Quality:
    """Evaluate a bundle on a folder and write `quality.json`, `quality.md` and plots to `out`.

    At most `limit` images of every set are scored. Logits are kept in `out`, and a run that was
    killed resumes from them. `on_progress` hears the form, the images done and their number.
    Raises `SettingsError` when the folder has no usable manifest or no readable image.
    """
    from training.quality_page import write_page
    from training.quality_plots import draw_plots

    bundle = detector.bundle
    listed = load_manifest(data)
    stock = take_stock(listed, data)
    entries, matches = held_back(listed, bundle)
    usable = [entry for entry in entries if entry.path in stock.digests]
    chosen = limited(usable, stock.digests, limit)
    if not chosen:
        raise SettingsError(f"{data}: none of the images listed can be read and evaluated")
    out.mkdir(parents=True, exist_ok=True)
    cache = LogitCache(out / "logits.jsonl", bundle.model_version)
    scored: dict[str, Scored] = {}
    for form in FORMS:

        def report(done: int, form: str = form) -> None:
            if on_progress is not None:
                on_progress(form, done, len(chosen))

        scored[form] = cache.score(detector, chosen, stock.digests, form, on_image=report)
    quality = measure(bundle, scored, data, refused=stock.refused, matches=matches, limit=limit)
    (out / "quality.json").write_text(quality.to_json() + "\n", encoding="utf-8")
    plots = draw_plots(quality, bundle, scored, data, out)
    write_page(quality, plots, out / "quality.md")
    return quality


def take_stock(entries: Sequence[Entry], data: Path) -> Stock:
    """Hash and decode every file once; what is missing, broken or too small is refused by name."""
    kept: list[Entry] = []
    digests: dict[Path, str] = {}
    refused: dict[str, str] = {}
    for entry in entries:
        name = entry.path.relative_to(data).as_posix()
        try:
            height, width = read_pixels(entry)[0].shape[:2]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            refused[name] = f"cannot be read: {type(error).__name__}"
            continue
        if min(height, width) < MIN_SIDE:
            refused[name] = f"{width} x {height} pixels: {MIN_SIDE} a side are needed"
            continue
        kept.append(entry)
        digests[entry.path] = sha256_of(entry.path)
    return Stock(kept, digests, refused)


def held_back(entries: Sequence[Entry], bundle: Bundle) -> tuple[list[Entry], bool]:
    """Return what may be evaluated, and whether the folder is the bundle's training snapshot.

    Of the snapshot only the calibration side of the recipe's split is; of any other folder all.
    """
    present = [entry for entry in entries if entry.path.is_file()]
    if snapshot_digest(present) != bundle.manifest.provenance.snapshot_digest:
        return present, False
    return divide(present, BundleRecipe())[1], True


def limited(
    entries: Sequence[Entry], digests: Mapping[Path, str], limit: int | None
) -> list[Entry]:
    """Keep at most `limit` images of every set: those whose sha256 come first, the same always."""
    if limit is None:
        return list(entries)
    taken: Counter[str] = Counter()
    kept = set()
    for entry in sorted(entries, key=lambda entry: digests[entry.path]):
        if taken[entry.set] < limit:
            taken[entry.set] += 1
            kept.add(entry.path)
    return [entry for entry in entries if entry.path in kept]


def published(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Return the supported operating points, strictest first."""
    return sorted((point for point in points if point.supported), key=lambda point: point.target)


def rate(flags: NDArray[np.bool_]) -> Rate:
    """Return the share of true flags (N,), N at least 1."""
    hits, total = int(flags.sum()), len(flags)
    low, high = clopper_pearson(hits, total)
    return Rate(hits=hits, total=total, value=hits / total, low=low, high=high)


def measure(
    bundle: Bundle,
    scored: Mapping[str, Scored],
    data: Path,
    *,
    refused: Mapping[str, str],
    matches: bool,
    limit: int | None,
) -> Quality:
    """Compute every figure from scored images; `matches`: the folder is the training snapshot."""
    manifest = bundle.manifest
    entries = next(iter(scored.values())).entries
    seen = manifest.provenance.seen_families
    accusations, misses = worst_mistakes(bundle, scored[MISTAKES_FORM], data)
    return Quality(
        bundle=manifest.name,
        model_version=bundle.model_version,
        seen_families=seen,
        flag_point=find_point(manifest.operating_points, manifest.policy.flag).name,
        doubt_point=find_point(manifest.operating_points, manifest.policy.doubt).name,
        operating_points=manifest.operating_points,
        images=dict(Counter(entry.label for entry in entries)),
        families={
            family: family in seen
            for family in sorted({entry.family for entry in entries if entry.generated})
        },
        limit=limit,
        snapshot_matches=matches,
        warnings=(
            KNOWN_MEMBERSHIP if matches else UNKNOWN_MEMBERSHIP,
            *((STEADY,) if manifest.policy.steady else ()),
        ),
        refused=refused,
        shortcut=shortcut_probes(entries),
        forms={form: form_figures(bundle, part) for form, part in scored.items()},
        accusations=accusations,
        misses=misses,
    )


def form_figures(bundle: Bundle, scored: Scored) -> FormFigures:
    """Compute the figures of one form."""
    fusion = bundle.manifest.fusion
    fused = scored.logits.fused(fusion)
    generated = scored.logits.generated
    if not generated.any() or generated.all():
        return FormFigures(
            groups=tuple(_groups(bundle, scored, fused)), calibration_error=None, bins=()
        )
    probabilities = np.array([fusion.probability(value, 0.5) for value in fused])
    weights = class_weights(generated)
    return FormFigures(
        groups=tuple(_groups(bundle, scored, fused)),
        calibration_error=expected_calibration_error(probabilities, generated, weights),
        bins=reliability(probabilities, generated, weights),
    )


def labels_of(bundle: Bundle, fused: NDArray[np.float64]) -> NDArray[np.str_]:
    """Label fused logits (N,) by the bundle's policy, without its check for steadiness."""
    manifest = bundle.manifest
    points, policy = manifest.operating_points, manifest.policy
    return np.array([label_of(float(value), points, policy)[0].value for value in fused])


def _groups(bundle: Bundle, scored: Scored, fused: NDArray[np.float64]) -> Iterator[Group]:
    generated = scored.logits.generated
    families = np.array([entry.family for entry in scored.entries])
    labels = labels_of(bundle, fused)
    masks = [("all photographs", "side", ~generated), ("all generated", "side", generated)]
    masks += [(name, "family", families == name) for name in _names(families[generated])]
    masks += [(name, "set", generated & (scored.sets == name)) for name in _names(scored.sets)]
    masks += [(name, "source", ~generated & (scored.sets == name)) for name in _names(scored.sets)]
    for name, kind, mask in masks:
        if mask.any():
            yield _group(bundle, scored, fused, labels, name=name, kind=kind, mask=mask)


def _names(values: NDArray[np.str_]) -> list[str]:
    return sorted({str(value) for value in values})


def _group(
    bundle: Bundle,
    scored: Scored,
    fused: NDArray[np.float64],
    labels: NDArray[np.str_],
    *,
    name: str,
    kind: str,
    mask: NDArray[np.bool_],
) -> Group:
    generated = scored.logits.generated
    side = bool(generated[mask][0])
    against = mask | (generated != side)
    flags = generated[against]
    whole: Interval | None = None
    branches: dict[str, Interval] = {}
    best: str | None = None
    gain: Interval | None = None
    if (generated != side).any():
        whole = auc(fused[against], flags)
        logits = {name: values[against] for name, values in scored.logits.branches.items()}
        branches = {name: auc(values, flags) for name, values in logits.items()}
        if len(branches) > 1:
            best = max(branches, key=lambda branch: branches[branch].value)
            gain = auc_gain(fused[against], logits[best], flags)
    family = next(entry.family for entry, kept in zip(scored.entries, mask, strict=True) if kept)
    known = kind in {"family", "set"}
    return Group(
        name=name,
        kind=kind,
        generated=side,
        seen=family in bundle.manifest.provenance.seen_families if known else None,
        images=int(mask.sum()),
        auc=whole,
        branches=branches,
        best_branch=best,
        gain=gain,
        at={
            point.name: rate(fused[mask] >= point.threshold)
            for point in published(bundle.manifest.operating_points)
        },
        flagged=rate(labels[mask] == Label.GENERATED.value),
        unsure=rate(labels[mask] == Label.UNSURE.value),
    )


def worst_mistakes(
    bundle: Bundle, scored: Scored, data: Path
) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    """Return the worst false accusations and the worst misses by label, worst first."""
    manifest = bundle.manifest
    fused = scored.logits.fused(manifest.fusion)
    labels = labels_of(bundle, fused)
    generated = scored.logits.generated

    def listed(wrong: NDArray[np.bool_], order: NDArray[np.intp]) -> tuple[Mistake, ...]:
        return tuple(
            Mistake(
                path=scored.entries[index].path.relative_to(data).as_posix(),
                set=scored.entries[index].set,
                logit=float(fused[index]),
                probability=manifest.fusion.probability(float(fused[index]), manifest.policy.prior),
            )
            for index in [int(one) for one in order if wrong[one]][:LISTED]
        )

    rising = np.argsort(fused, kind="stable")
    accused = ~generated & (labels == Label.GENERATED.value)
    missed = generated & (labels == Label.REAL.value)
    return listed(accused, rising[::-1]), listed(missed, rising)


def shortcut_probes(entries: Sequence[Entry]) -> dict[str, Probe]:
    """Say how far nuisances alone separate the harmonised files; empty with too few images.

    A detector's area under the ROC curve means something only above what these reach.
    """
    try:
        return audit(_harmonised_files(entries)).probes
    except SettingsError:
        return {}


def _harmonised_files(entries: Sequence[Entry]) -> Iterator[SourceFile]:
    for entry in entries:
        pixels, kind = read_pixels(entry)
        kept = entry.generated and kind == "JPEG"
        yield SourceFile(
            name=entry.path.name,
            data=entry.path.read_bytes() if kept else GENERATOR_CODEC.encode(pixels),
            generated=entry.generated,
            group=entry.group,
        )
