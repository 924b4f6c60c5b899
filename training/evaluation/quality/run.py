"""Runs the quality report: scores a folder, computes figures, writes page and plots.

Thresholds come from the bundle and never from these images. Every figure is stated for the images
harmonised in codec and re-encoded by each tier, and for the files as they were uploaded.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from detection.errors import SettingsError
from training.data.manifest import load_manifest, snapshot_digest
from training.data.samples import check_images
from training.data.splits import divide
from training.evaluation.quality.figures import compute_quality
from training.evaluation.robustness_tiers import TIERS
from training.evaluation.score_cache import ScoreCache
from training.evaluation.scoring import RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from detection.bundle import Bundle
    from detection.detector import Detector
    from training.data.manifest import Entry
    from training.evaluation.quality.report import Quality
    from training.evaluation.scoring import Scored

    Progress = Callable[[str, int, int], None]

#: What is scored: every tier of the harmonised files, and the files as they are.
FORMS = (*TIERS, RAW)


def evaluate_bundle(
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
    from training.evaluation.quality.page import write_page
    from training.evaluation.quality.plots import draw_plots

    bundle = detector.bundle
    listed = load_manifest(data)
    inventory = check_images(listed, data)
    entries, matches = evaluation_subset(listed, bundle)
    usable = [entry for entry in entries if entry.path in inventory.digests]
    chosen = limit_per_set(usable, inventory.digests, limit)
    if not chosen:
        raise SettingsError(f"{data}: none of the images listed can be read and evaluated")
    out.mkdir(parents=True, exist_ok=True)
    cache = ScoreCache(out / "logits.jsonl", bundle.model_version)
    scored: dict[str, Scored] = {}
    for form in FORMS:

        def report(done: int, form: str = form) -> None:
            if on_progress is not None:
                on_progress(form, done, len(chosen))

        scored[form] = cache.score(detector, chosen, inventory.digests, form, on_image=report)
    quality = compute_quality(
        bundle, scored, data, refused=inventory.refused, matches=matches, limit=limit
    )
    (out / "quality.json").write_text(quality.to_json() + "\n", encoding="utf-8")
    plots = draw_plots(quality, bundle, scored, data, out)
    write_page(quality, plots, out / "quality.md")
    return quality


def evaluation_subset(entries: Sequence[Entry], bundle: Bundle) -> tuple[list[Entry], bool]:
    """Return what may be evaluated, and whether the folder is the bundle's training snapshot.

    Of the snapshot of a bundle of local branches only the calibration side of the recipe's split
    is. A backbone's head is fitted on all of its snapshot, so that nothing of it is unseen, and all
    of it is evaluated, as all of any other folder is.
    """
    present = [entry for entry in entries if entry.path.is_file()]
    if snapshot_digest(present) != bundle.manifest.provenance.snapshot_digest:
        return present, False
    if bundle.manifest.backbone is not None:
        return present, True
    return divide(present)[1], True


def limit_per_set(
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
