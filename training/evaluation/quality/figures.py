"""The figures of the quality report, computed from scored images."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from detection.errors import SettingsError
from detection.fusion import assign_label, select_operating_point
from detection.score import Label
from training.data.samples import GENERATOR_CODEC, read_pixels
from training.evaluation.calibration import (
    class_weights,
    clopper_pearson,
    expected_calibration_error,
    reliability,
)
from training.evaluation.quality.report import (
    FormFigures,
    Group,
    LabelChanges,
    Mistake,
    Quality,
    RateWithInterval,
    published,
)
from training.evaluation.scoring import RAW, auc, auc_gain
from training.evaluation.shortcut_audit import run_probes
from training.evaluation.shortcut_features import SourceFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle import Bundle
    from training.data.manifest import Entry
    from training.evaluation.alignment_measures import Probe
    from training.evaluation.scoring import Interval, Scored

#: The form in which mistakes are listed, and from which labels change.
PLAIN_FORM = "clean"
#: How many of the worst mistakes of each kind are listed.
LISTED = 24
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
ALL_TRAINED_ON = (
    "This folder is the snapshot that the bundle was trained on, all of it: every figure here"
    " flatters the bundle. Its card states the figures of images that were left out."
)
STEADY = (
    "In service this bundle also checks that `generated` survives a mild re-encoding, and says"
    " `unsure` if not. This report labels without that check: in service no more images are"
    " labelled `generated` than here, photographs and fakes alike, and as many more `unsure`."
)


def compute_quality(
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
    accusations, misses = worst_mistakes(bundle, scored[PLAIN_FORM], data)
    return Quality(
        bundle=manifest.name,
        model_version=bundle.model_version,
        seen_families=seen,
        flag_point=select_operating_point(manifest.operating_points, manifest.policy.flag).name,
        doubt_point=select_operating_point(manifest.operating_points, manifest.policy.doubt).name,
        operating_points=manifest.operating_points,
        images=dict(Counter(entry.label for entry in entries)),
        families={
            family: family in seen
            for family in sorted({entry.family for entry in entries if entry.generated})
        },
        limit=limit,
        snapshot_matches=matches,
        warnings=(
            _membership(bundle, matches=matches),
            *((STEADY,) if manifest.policy.steady else ()),
        ),
        refused=refused,
        shortcut=shortcut_probes(entries),
        forms={form: form_figures(bundle, part) for form, part in scored.items()},
        changes={
            form: changes
            for form, part in scored.items()
            if form not in {PLAIN_FORM, RAW}
            and (changes := label_changes(bundle, scored[PLAIN_FORM], part)) is not None
        },
        accusations=accusations,
        misses=misses,
    )


def _membership(bundle: Bundle, *, matches: bool) -> str:
    if not matches:
        return UNKNOWN_MEMBERSHIP
    return KNOWN_MEMBERSHIP if bundle.manifest.backbone is None else ALL_TRAINED_ON


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


def label_changes(bundle: Bundle, plain: Scored, form: Scored) -> LabelChanges | None:
    """Say how many images labelled `generated` in one form another calls otherwise; None of none.

    Both hold the same images in the same order, photographs among them.
    """
    before, after = (
        labels_of(bundle, part.logits.fused(bundle.manifest.fusion)) for part in (plain, form)
    )
    changed = after[before == Label.GENERATED.value]
    if not len(changed):
        return None
    return LabelChanges(
        real=rate(changed == Label.REAL.value), unsure=rate(changed == Label.UNSURE.value)
    )


def labels_of(bundle: Bundle, fused: NDArray[np.float64]) -> NDArray[np.str_]:
    """Label fused logits (N,) by the bundle's policy, without its check for steadiness."""
    manifest = bundle.manifest
    points, policy = manifest.operating_points, manifest.policy
    return np.array([assign_label(float(value), points, policy)[0].value for value in fused])


def rate(flags: NDArray[np.bool_]) -> RateWithInterval:
    """Return the share of true flags (N,), N at least 1."""
    hits, total = int(flags.sum()), len(flags)
    low, high = clopper_pearson(hits, total)
    return RateWithInterval(hits=hits, total=total, value=hits / total, low=low, high=high)


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
        return run_probes(_harmonised_files(entries))
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
