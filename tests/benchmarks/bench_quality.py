"""`make bench-quality DATA=… [BUNDLE=…] [OUT=…] [LIMIT=…]`: what a bundle is worth on a folder.

Writes `quality.json`, `quality.md` and plots to OUT, and prints one JSON object with the headline
figures on standard output. It is `unlatent evaluate` with a record for machines, and with the
labels of the wheels' photographs in unusual shapes, which are counted there and in `shapes.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.detector import Detector
from tests.benchmarks.detector.shapes import count_labels
from training.evaluation.quality.run import evaluate_bundle
from worker.settings import load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.evaluation.quality.report import FormFigures, Quality


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    parser.add_argument("--limit", type=int, default=None, help="at most so many images a set")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    configure(load_settings().observability)  # log lines: standard output is the record's
    detector = Detector.load(options.bundle, device=options.device)
    quality = evaluate_bundle(
        detector, options.data, options.out, limit=options.limit, on_progress=show_progress
    )
    for warning in quality.warnings:
        print(f"Mind: {warning}", file=sys.stderr)
    shapes = count_labels(detector)
    (options.out / "shapes.md").write_text(shapes_page(shapes), encoding="utf-8")
    print(json.dumps(headline(quality) | {"shapes": shapes}))
    return 0


def shapes_page(shapes: Mapping[str, Mapping[str, int]]) -> str:
    """Write the labels by shape as a table."""
    lines = ["# Real photographs in unusual shapes", ""]
    lines += ["| shape | generated | unsure | real |", "| --- | --- | --- | --- |"]
    for name, counts in shapes.items():
        lines.append(f"| {name} | {counts['generated']} | {counts['unsure']} | {counts['real']} |")
    return "\n".join(lines) + "\n"


def show_progress(form: str, done: int, total: int) -> None:
    """Say on standard error how far a form is."""
    print(f"{form}: {done} of {total} images scored", file=sys.stderr)


def headline(quality: Quality) -> dict[str, Any]:
    """Pick what fits on a line from the report."""
    return {
        "model_version": quality.model_version,
        "images": quality.images,
        "families": quality.families,
        "snapshot_matches": quality.snapshot_matches,
        "forms": {name: form_line(form) for name, form in quality.forms.items()},
    }


def form_line(form: FormFigures) -> dict[str, Any]:
    """State one form's area, shares labelled generated, and calibration error."""
    reals, fakes = form.side(generated=False), form.side(generated=True)
    return {
        "auc": asdict(fakes.auc) if fakes and fakes.auc else None,
        "photographs_flagged": asdict(reals.flagged) if reals else None,
        "generated_flagged": asdict(fakes.flagged) if fakes else None,
        "calibration_error": form.calibration_error,
    }


if __name__ == "__main__":
    sys.exit(main())
