"""Champion and challenger on the same images: what the promotion gate decides on.

Neither trained on any of them: the evaluation side of the data set at hand and of earlier ones, and
the pinned half of the closed reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detection.bundle import sha256_of
from detection.detector import MIN_SIDE
from detection.fusion import select_operating_point
from training.evaluation.promotion_gate import ModelPredictions, PairedPredictions, PinnedReport
from training.evaluation.score_cache import ScoreCache
from training.evaluation.scoring import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.bundle import Bundle
    from detection.detector import Detector
    from detection.score import Label
    from training.data.manifest import Entry
    from training.evaluation.scoring import Scored

#: The forms in which both are compared; the gate wants the first to improve.
FORMS = ("clean", "web", "hard")
#: The tier of what the newest data set adds, as it is.
NEW = "new data"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedReport:
    """A report that a moderator closed: the image, and what it truly is."""

    key: str
    truth: Label
    pixels: NDArray[np.uint8]


def compare_models(
    champion: Detector,
    challenger: Detector,
    entries: Sequence[Entry],
    run_dir: Path,
    *,
    new: Iterable[Path] = (),
    on_image: Callable[[str, int], None] | None = None,
) -> dict[str, PairedPredictions]:
    """Score entries with both under every form; `new` are the paths of the newest data set's.

    Scores are kept in `run_dir`: a killed run goes on where it stopped. `on_image` hears the form
    and how many images a model has done.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    digests = {entry.path: sha256_of(entry.path) for entry in entries}
    scored: dict[str, dict[str, Scored]] = {form: {} for form in FORMS}
    for role, detector in (("champion", champion), ("challenger", challenger)):
        cache = ScoreCache(run_dir / f"{role}.jsonl", detector.model_version)
        for form in FORMS:

            def heard(done: int, form: str = form) -> None:
                if on_image is not None:
                    on_image(form, done)

            scored[form][role] = cache.score(detector, entries, digests, form, on_image=heard)
    tiers = {
        form: _paired(parts["champion"], parts["challenger"], champion.bundle, challenger.bundle)
        for form, parts in scored.items()
    }
    paths = set(new)
    added = np.array([entry.path in paths for entry in entries], dtype=bool)
    if added.any() and not added.all():
        tiers[NEW] = tiers[FORMS[0]].of(np.flatnonzero(added))
    return tiers


def _paired(champion: Scored, challenger: Scored, old: Bundle, new: Bundle) -> PairedPredictions:
    return PairedPredictions(
        sources=champion.sets,
        generated=champion.logits.generated,
        champion=predictions(champion, old),
        challenger=predictions(challenger, new),
    )


def predictions(scored: Scored, bundle: Bundle) -> ModelPredictions:
    """Say what a bundle says of scored images; probabilities are at even odds."""
    manifest = bundle.manifest
    fused = scored.logits.fused(manifest.fusion)
    return ModelPredictions(
        logits=fused,
        probabilities=np.array(
            [manifest.fusion.probability(value, 0.5) for value in fused.tolist()]
        ),
        threshold=select_operating_point(manifest.operating_points, manifest.policy.flag).threshold,
    )


def pinned_reports(
    champion: Detector, challenger: Detector, reports: Iterable[ClosedReport]
) -> list[PinnedReport]:
    """Label closed reports with both as they are served; too small images are passed over."""
    listed = [report for report in reports if min(report.pixels.shape[:2]) >= MIN_SIDE]
    said: list[PinnedReport] = []
    for start in range(0, len(listed), BATCH):
        part = listed[start : start + BATCH]
        images = [report.pixels for report in part]
        rows = zip(part, champion.score(images), challenger.score(images), strict=True)
        said += [
            PinnedReport(
                key=report.key, truth=report.truth, champion=old.label, challenger=new.label
            )
            for report, old, new in rows
        ]
    return said


def share_found(tiers: Mapping[str, PairedPredictions]) -> dict[str, dict[str, float]]:
    """Return, by tier and model, recall and false-positive rate at the threshold it serves."""
    found: dict[str, dict[str, float]] = {}
    for tier, paired in tiers.items():
        for role, said in (("champion", paired.champion), ("challenger", paired.challenger)):
            for name, mask in (("recall", paired.generated), ("false", ~paired.generated)):
                if mask.any():
                    rate = float(said.flagged[mask].mean())
                    found.setdefault(tier, {})[f"{role} {name}"] = rate
    return found
