"""`make bench-improvement DATA=… RUN=… FAMILY=… [TAEF2=…]`: what learning from a new family gains.

The champion is a fold of `unlatent bundle --run RUN`: trained without one autoencoder family and
without one source of photographs; the head of a backbone is fitted again from the features that the
run keeps. It is calibrated on photographs of that source and on prompts that the fold held back,
then taught on a part of what the fold left out; both are compared on the rest, of which neither has
seen an image. Prints one JSON object; the gate's page is in OUT.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from detection.bundle import load_bundle
from training.bundles.backbone_build import feature_head, with_head
from training.bundles.challenger import ChallengerOrigin, ChallengerRecipe, calibrate_challenger
from training.bundles.recipe import RECIPES
from training.bundles.training_run.run import BundleTrainingRun
from training.bundles.writer import write_bundle
from training.data.folds import HELD_PROMPTS, load_folds
from training.data.manifest import load_manifest
from training.data.selection import CollectPolicy, Split, split_of
from training.data.splits import hash_fraction
from training.data.taef2 import taef2_aligner
from training.retraining.folder_run import FolderRunOptions, run_on_folder
from worker.settings import load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detection.bundle import Bundle
    from training.data.folds import Fold
    from training.data.manifest import Entry

#: A fold leaves out few generated images: the gate wants 50 of them on the evaluation side.
SHARES = CollectPolicy(evaluation=0.4, calibration=0.25)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--run", type=Path, required=True, help="--run of `unlatent bundle`")
    parser.add_argument("--family", required=True, help="the family that the fold left out")
    parser.add_argument("--taef2", type=Path, default=None, help="folder of TAEF2, to make pairs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("out/improvement"))
    options = parser.parse_args(arguments)
    configure(load_settings().observability)  # log lines: standard output is the record's
    entries = load_manifest(options.data)
    fold = next(one for one in load_folds(options.data, entries) if options.family in one.families)
    options.out.mkdir(parents=True, exist_ok=True)
    champion = champion_of(fold, entries, options.run, options.out / "champion")
    outcome = run_on_folder(
        listed(
            [entry for entry in entries if fold.left_out(entry)],
            options.data,
            options.out / "data",
        ),
        champion,
        options.out / "turn",
        ChallengerRecipe().at_most(options.steps),
        FolderRunOptions(
            data_licence="the terms of the folder's images",
            aligners=[] if options.taef2 is None else [taef2_aligner(options.taef2)],
            shares=SHARES,
            despite_audit=True,
        ),
        on_progress=show_progress,
    )
    decision = asdict(outcome.decision)
    sides = Counter(
        split_of(entry.group, SHARES)
        for entry in entries
        if entry.generated and fold.left_out(entry)
    )
    record = {
        "fold": fold.name,
        "generated": {side.value: count for side, count in sides.items()},
        "champion": champion.model_version,
        "challenger": outcome.bundle.model_version,
        "report": str(outcome.report),
        **{name: decision[name] for name in ("passed", "reasons", "false_positive_rate")},
        "figures": decision["figures"],
    }
    print(json.dumps(record))
    return 0


def champion_of(fold: Fold, entries: Sequence[Entry], run: Path, folder: Path) -> Bundle:
    """Calibrate the fold's bundle on images that it was not trained on and that it is not held to.

    Photographs come from the source that the fold left out, of the calibration side; generated
    images are of families that it knows, by prompts that it held back.
    """
    families = sorted({entry.family for entry in entries if entry.generated} - fold.families)
    reals = [
        entry
        for entry in entries
        if not entry.generated
        and fold.left_out(entry)
        and split_of(entry.group, SHARES) is Split.CALIBRATION
    ]
    known = [entry for entry in entries if entry.generated and not fold.left_out(entry)]
    # The order of a hash: as many as there are photographs, of every family.
    held = sorted(
        (entry for entry in known if hash_fraction(entry.group) < HELD_PROMPTS),
        key=lambda entry: hash_fraction(entry.path.name),
    )
    chosen = [*reals, *held[: len(reals)]]
    draft = draft_of(fold, entries, run, folder.with_name("draft"))
    origin = ChallengerOrigin(
        snapshot_digest="", families=families, data_licence="none", facts={"fold": fold.name}
    )
    return calibrate_challenger(folder, draft, {}, chosen, origin)


def draft_of(fold: Fold, entries: Sequence[Entry], run: Path, folder: Path) -> Bundle:
    """Return what the fold trained: networks that the run keeps, or a head on its features."""
    recipe = RECIPES[json.loads((run / "recipe.json").read_text("utf-8"))["name"]]
    if recipe.backbone is None:
        return load_bundle(run / fold.name / "draft")
    training_run = BundleTrainingRun(entries, run, recipe)
    head, backbone = feature_head(training_run)
    training, _ = fold.divide(entries)
    return write_bundle(folder, training_run, {"backbone": with_head(head, backbone, training)})


def listed(entries: Sequence[Entry], data: Path, folder: Path) -> Path:
    """Write a manifest of some of the images of `data`, which `folder` links to."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "images"
    if not link.exists():
        link.symlink_to(data.absolute())
    rows = ["path\tlabel\tset\tfamily\tgroup"]
    for one in entries:
        path = (Path(link.name) / one.path.relative_to(data)).as_posix()
        rows.append(f"{path}\t{one.label}\t{one.set}\t{one.family}\t{one.group}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def show_progress(part: str, done: int, total: int) -> None:
    """Say on standard error how far a part is."""
    print(f"{part}: {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
